"""A run whose model has pathways, and HSTU blocks that read times, through `train.main`: trained, evaluated, bundled,
served, and the same scores from each."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onerec.bundle import Bundle
from onerec.config import RunConfig
from onerec.data.features import user_profiles
from onerec.data.histories import Split
from onerec.data.pathways import EventSource
from onerec.evaluation.runs import load_run
from onerec.pipeline import Pipeline
from onerec.serving.engine import Engine
from onerec.serving.limits import Limits
from onerec.serving.schema import RecommendRequest
from tests.tiny_run import run_stage, write_config
from tokenizer.settings import load_settings

CHANGES = """
name: paths
data:
  world: {num_events: 1200}
model:
  max_history_items: 6
  context_block: hstu
  pathways:
    times: true
    static: {features: [user_id]}
    short_term: {}
    positive: {column: click, length: 8}
    lifelong: {max_representatives: 4, num_queries: 2}
baselines: {popularity: false, item_knn: null}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    assert run_stage(write_config(root, CHANGES), root) == 0
    return root / "paths"


def test_bundle_and_evaluation_rank_alike(folder: Path) -> None:
    pipeline = Pipeline.open(load_settings(RunConfig, folder / "config.yaml"), folder.parent)
    bundle, data = Bundle.load(folder / "bundle"), pipeline.data
    assert bundle.model.encoder.pathways is not None
    source = EventSource(data.histories, user_profiles(data.users, bundle.model.encoder.pathways.spec))
    rows = data.histories.targets(Split.TEST)
    requests = [source.before(int(row)) for row in rows]
    ranking = bundle.recommender().recommend(requests, 10, exclude_seen=False)
    hits = (ranking.items_BK == np.asarray(data.histories.items)[rows][:, None]).any(axis=1)
    evaluation = load_run(folder / "evaluations" / "onerec").evaluations["test"]
    assert evaluation.metrics["recall@10"] == pytest.approx(hits.mean())
    bare = bundle.recommender().recommend([events.items for events in requests], 10, exclude_seen=False)
    assert not np.array_equal(bare.items_BK, ranking.items_BK)


def test_the_endpoint_scores_what_is_evaluated(folder: Path) -> None:
    pipeline = Pipeline.open(load_settings(RunConfig, folder / "config.yaml"), folder.parent)
    bundle, histories = Bundle.load(folder / "bundle"), pipeline.data.histories
    row = int(histories.targets(Split.TEST)[5])
    events = EventSource(histories, pipeline.data.users.select("user_id").to_dicts()).before(row)
    feedback = {name: values.tolist() for name, values in events.feedback.items()}
    engine, ids = Engine(bundle, Limits()), bundle.items["item_id"].to_list()

    def answer(**known: Any) -> list[Any]:
        request = {"history": [ids[item] for item in events.items], "known": known, "profile": events.profile}
        found = engine.answer([engine.query(RecommendRequest(**request, exclude_seen=False))])[0]
        return [(item.id, pytest.approx(item.score, rel=1e-5)) for item in found.items]

    ranking = bundle.recommender().recommend([events], 10, exclude_seen=False)
    expected = [(ids[item], score) for item, score in zip(ranking.items_BK[0], ranking.scores_BK[0], strict=True)]
    served = answer(timestamps=events.timestamps.tolist(), feedback=feedback)
    assert served == expected
    assert answer(feedback=feedback) != expected


def test_a_feature_that_the_data_lack_ends_the_run_before_training(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stage(folder.parent / "tiny.yaml", tmp_path, "model.pathways.positive.column=clik", stage="data") == 1
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "found 'clik'" in printed
    assert "Did you mean 'click'" in printed
