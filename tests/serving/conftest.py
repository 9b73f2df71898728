"""Bundles that can place new items: a fitted tokenizer, an untrained model, forty films."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

NUM_ITEMS, VECTOR_WIDTH = 40, 6


@pytest.fixture(scope="session")
def live_items() -> pl.DataFrame:
    """Keys 100 to 139 in four kinds; the vectors of a kind lie together."""
    random = np.random.default_rng(0)
    kinds_N = np.arange(NUM_ITEMS) % 4
    vectors_ND = 5 * np.eye(4, VECTOR_WIDTH)[kinds_N] + random.normal(size=(NUM_ITEMS, VECTOR_WIDTH))
    return pl.DataFrame(
        {
            "item_id": [100 + item for item in range(NUM_ITEMS)],
            "title": [f"Film {100 + item}" for item in range(NUM_ITEMS)],
            "genre": [["drama", "comedy|drama", "horror", "noir"][kind] for kind in kinds_N],
            "year": [1990 + item % 3 for item in range(NUM_ITEMS)],
            "vector": vectors_ND.tolist(),
        }
    )


@pytest.fixture(scope="session")
def make_live_bundle(
    small_run: Any, live_items: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Write a bundle with its tokenizer; `shape` changes the model's, `groups` are the tokenizer's settings."""

    def make(with_tokenizer: bool = True, seed: int = 0, shape: dict[str, Any] | None = None, **groups: Any) -> Path:
        from onerec.bundle import write_bundle
        from tokenizer.config import TokenizerSettings
        from tokenizer.fit import fit_tokenizer, load_pieces
        from tokenizer.sequences import Sequences
        from tokenizer.settings import build_settings

        tree: dict[str, Any] = {
            "seed": seed,
            "text": {"weight": 0},
            "collaborative": {"weight": 0},
            "given": {"weight": 1, "source": "vector"},
            "quantizer": {"codes_per_level": [6, 5], "iterations": 5},
            "report": {"max_bucket_share": 1},
        }
        settings = build_settings(TokenizerSettings, tree | groups, "test")
        folder = tmp_path_factory.mktemp("live")
        sequences = Sequences(np.array([0, 3]), np.array([0, 1, 2], dtype=np.int32))
        columns = {"title": "title", "genre": "genre"}
        table = fit_tokenizer(live_items, sequences, settings, folder / "tokenizer", {}, "cfg", list(columns))
        model = make_model(table, load_pieces(folder / "tokenizer", table), seed, shape or {})
        schema = small_run.data.schema.model_copy(update={"category_columns": ("genre", "year")})
        data = dataclasses.replace(small_run.data, items=live_items, schema=schema)
        parts = (model, table, data, small_run.results, small_run.config, {"data": "d" * 64})
        write_bundle(folder / "bundle", *parts, tokenizer=folder / "tokenizer" if with_tokenizer else None)
        return folder / "bundle"

    return make


def make_model(table: Any, pieces: Any, seed: int, changes: dict[str, Any]) -> Any:
    """An untrained model of the table, far from uniform, so that items differ in score."""
    import torch

    from onerec.model.configuration import OneRecConfig
    from onerec.model.onerec import OneRec

    torch.manual_seed(seed)
    shape: dict[str, Any] = {"d_model": 16, "d_ff": 32, "max_history_items": 8, **changes}
    if pieces is not None:
        shape["num_pieces"] = pieces.vocabulary_size
    model = OneRec(OneRecConfig(list(table.codes_per_level), table.num_items, **shape)).eval()
    model.set_codes(table.codes_NL, table.content_hash)
    if pieces is not None:
        cut = pieces.encode(table.codes_NL)
        model.set_pieces(cut.pieces_P, cut.offsets)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


@pytest.fixture(scope="session")
def live_bundle(make_live_bundle: Callable[..., Path]) -> Path:
    """Folder of a bundle that places new items by their vectors, with suffixes; do not change it."""
    return make_live_bundle()
