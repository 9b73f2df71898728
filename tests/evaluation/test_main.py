"""Runs of several seeds brought together from their folders, written here without training anything."""

import re
from pathlib import Path

import numpy as np
import pytest

from onerec.config import RunConfig
from onerec.evaluation import metrics
from onerec.evaluation.__main__ import main
from onerec.evaluation.evaluator import Evaluation, Targets
from onerec.evaluation.results import Run, read_results
from onerec.evaluation.runs import save_run
from tokenizer.artifacts import write_manifest
from tokenizer.settings import build_settings, dump_yaml

SECTION = {"evaluation": {"ks": [1, 5, 10], "bootstrap_samples": 50}}


def write_run(root: Path, name: str, seed: int, ranks: dict[str, list[int]], events: int = 4, **section: object) -> str:
    """A run's folder as far as a summary reads it: config, data manifest and evaluations of these ranks."""
    folder = root / name
    (folder / "data").mkdir(parents=True)
    config = build_settings(RunConfig, {**SECTION, **section, "name": name, "seed": seed}, name)
    (folder / "config.yaml").write_text(dump_yaml(config))
    (folder / "data" / "events.npy").write_bytes(bytes(events))
    data = write_manifest(folder / "data", "data", {}, "", {"source": "made"})
    for recommender, places in ranks.items():
        evaluations = {"test": make_evaluation(recommender, places)}
        run = Run(seed, evaluations, minutes=1.0, parameters=5)
        save_run(folder / "evaluations" / recommender, run, {"data": data.content_hash}, "")
    return str(folder)


def make_evaluation(recommender: str, places: list[int]) -> Evaluation:
    ranks_R, rows = np.array(places, dtype=np.int32), np.arange(len(places))
    return Evaluation(
        recommender=recommender,
        protocol="test",
        targets=Targets(rows, rows, rows, rows, len(rows)),
        ranks_R=ranks_R,
        metrics=metrics.mean_metrics(ranks_R, [1, 5, 10]),
        intervals={},
        slices={},
        exposure={"coverage@10": 0.5},
        invalid_rate=0.0,
        unfilled_rate=0.0,
        unreachable_targets=0,
        empty_histories=0,
        seconds=1.0,
    )


def test_seeds_to_mean_and_spread_in_file_page_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_run(tmp_path, "a", 0, {"item-knn": [0, 0, 0, 1], "onerec": [1, 0, 2, 0]})
    b = write_run(tmp_path, "b", 5, {"item-knn": [0, 0, 0, 1], "onerec": [1, 3, 2, 0]})
    assert main([a, b, "--out", str(tmp_path / "out")]) == 0
    results = read_results(tmp_path / "out" / "metrics.json")
    assert results.seeds == [0, 5]
    assert list(results.test) == ["onerec", "item-knn"]
    recall = results.test["onerec"].metrics["recall@5"]
    assert recall.by_seed == {"0": 0.5, "5": 0.75}
    assert (recall.mean, recall.spread) == (0.625, pytest.approx(0.25 / np.sqrt(2)))
    assert results.test["item-knn"].metrics["recall@5"].spread == 0
    printed = capsys.readouterr().out
    assert "± R@10" in printed
    assert ".6250" in printed
    assert ".1768" in printed
    assert "±0.1768" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("seed", "change", "message"),
    [
        (0, {}, "found the seeds 0, 0, expected a different one in each run"),
        (1, {"training": {"epochs": 3}}, r"differ in more than name and seed \(training.epochs: found 3, expected "),
        (1, {"events": 5}, r"b: its data: found hash \w{64}, expected \w{64}"),
        (1, {"ranks": {"onerec": [1, 0]}}, "found evaluations of onerec, expected onerec, popularity"),
        (1, {"ranks": {"popularity": [1, 0]}}, "found no evaluation of onerec"),
        (1, {"ranks": {"onerec": [1], "popularity": [1]}}, "same split and sample"),
    ],
)
def test_runs_that_are_not_one_experiment_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int, change: dict[str, object], message: str
) -> None:
    ranks = {"onerec": [1, 0], "popularity": [0, 1]}
    a = write_run(tmp_path, "a", 0, ranks)
    b = write_run(tmp_path, "b", seed, **{"ranks": ranks, **change})
    assert main([a, b, "--out", str(tmp_path / "out")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
