"""Settings of all tests, and a run small enough to be made in a moment."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# No test asserts a time: a loaded machine would fail it for nothing.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


@dataclass(frozen=True)
class SmallRun:
    """An untrained model with its table, catalogue and figures: what a bundle is written from."""

    model: Any
    table: Any
    data: Any
    results: Any
    config: Any

    def write_bundle(self, folder: Path) -> Path:
        """Write the bundle by the pipeline's own function."""
        from onerec.bundle import write_bundle

        parts = [getattr(self, field.name) for field in dataclasses.fields(self)]
        write_bundle(folder, *parts, inputs={"data": "d" * 64, "pretrain": "p" * 64})
        return folder


@pytest.fixture(scope="session")
def small_run() -> SmallRun:
    """40 films with integer keys 100 to 139, the last one without a title."""
    from onerec.config import RunConfig

    keys = [100 + item for item in range(40)]
    table = _small_table(keys)
    config = RunConfig(name="small", decoding={"num_beams": 12})
    return SmallRun(_small_model(table), table, _small_data(keys), _small_results(), config)


def _small_table(keys: list[int]) -> Any:
    import numpy as np

    from tokenizer.table import SemanticIdTable

    sizes = (6, 5, 4)
    flat_N = np.random.default_rng(0).choice(int(np.prod(sizes)), len(keys), replace=False)
    codes_NL = np.stack(np.unravel_index(flat_N, sizes), axis=1)
    return SemanticIdTable.of_unique(codes_NL, sizes, map(str, keys))


def _small_model(table: Any) -> Any:
    import torch

    from onerec.model.configuration import OneRecConfig
    from onerec.model.onerec import OneRec

    torch.manual_seed(0)
    shape = {"d_model": 16, "d_ff": 32, "max_history_items": 8}
    model = OneRec(OneRecConfig(list(table.codes_per_level), len(table.codes_NL), **shape)).eval()
    model.set_codes(table.codes_NL, table.content_hash)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)  # far from uniform, so that items differ in score
    return model


def _small_data(keys: list[int]) -> Any:
    import numpy as np
    import polars as pl

    from onerec.data.histories import Histories
    from onerec.data.prepared import PreparedData
    from onerec.data.schema import ResolvedSchema
    from tokenizer.artifacts import FORMAT_VERSION, Manifest

    titles = [f"Film {key}" for key in keys[:-1]] + [None]
    columns = {"title": titles, "genre": ["drama"] * len(keys), "year": [1990] * len(keys)}
    items = pl.DataFrame({"item_id": keys, **columns})
    histories = Histories(np.array([0, 2]), np.array([0, 1], dtype=np.int32), np.arange(2), np.zeros(2, dtype=np.uint8))
    schema = ResolvedSchema(
        text_columns=("title",),
        category_columns=("genre",),
        user_category_columns=(),
        feedback={},
        has_time=True,
        vector_width=None,
    )
    provenance = {"source": "small films", "licence": "CC0", "citation": "", "num_users": 1, "num_items": len(keys)}
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        kind="data",
        inputs={},
        config_hash="",
        files={},
        packages={},
        code_revision="",
        details={**provenance, "num_events": 2},
    )
    return PreparedData(items, pl.DataFrame({"user_id": [1]}), histories, schema, manifest)


def _small_results() -> Any:
    from onerec.evaluation.results import MetricSummary, RecommenderSummary, Results

    metric = MetricSummary(by_seed={"0": 0.125}, mean=0.125, spread=None, interval=(0.1, 0.15))
    figures: dict[str, Any] = {"invalid_rate": 0.0, "unfilled_rate": 0.0, "minutes": 1.0, "parameters": 5}
    figures |= {"requests_per_s": 1.0, "unreachable_targets": 0, "empty_histories": 0, "exposure": {}, "slices": {}}
    summary = RecommenderSummary(**figures, **{"recall@10": metric, "ndcg@10": metric})
    return Results(dataset="small films", seeds=[0], rows={}, settings={"ks": [10]}, test_unseen={"onerec": summary})


@pytest.fixture(scope="session")
def small_bundle(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a bundle; do not change it."""
    return small_run.write_bundle(tmp_path_factory.mktemp("run") / "bundle")
