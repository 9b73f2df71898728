import io

import numpy as np
import pytest
from rich.console import Console

from onerec.errors import ArtifactError, DataError
from onerec.evaluation import metrics
from onerec.evaluation.evaluator import Evaluation, Targets
from onerec.evaluation.published import _read_file, published_figures
from onerec.evaluation.record import main
from onerec.evaluation.results import Run, read_results, summarize_runs, write_results
from onerec.evaluation.settings import EvaluationSettings
from onerec.evaluation.slices import slice_table
from onerec.evaluation.tables import print_results

SETTINGS = EvaluationSettings(ks=(1, 5, 10), bootstrap_samples=200)


def make_evaluation(ranks, protocol="test", available=None) -> Evaluation:
    ranks = np.array(ranks, dtype=np.int32)
    rows = np.arange(len(ranks))
    return Evaluation(
        recommender="made",
        protocol=protocol,
        targets=Targets(rows, rows, rows, rows, available or len(rows)),
        ranks_R=ranks,
        metrics=metrics.mean_metrics(ranks, SETTINGS.ks),
        intervals={},
        slices={"cold": {"rows": 1, "recall@10": 0.5}, "hot": {"rows": 0}},
        exposure={"coverage@10": 0.25},
        invalid_rate=0.0,
        unfilled_rate=0.0,
        unreachable_targets=0,
        empty_histories=0,
        seconds=2.0,
    )


def make_run(seed, ranks, protocols=("test", "test_unseen")) -> Run:
    return Run(seed, {name: make_evaluation(ranks, name) for name in protocols}, minutes=1.5, parameters=10)


@pytest.fixture
def results():
    runs = {
        "onerec": [make_run(0, [1, 0, 2, 0]), make_run(1, [1, 3, 2, 0])],
        "popularity": [make_run(0, [0, 0, 0, 12])],
    }
    return summarize_runs(runs, "amazon14_beauty", SETTINGS)


def test_seeds_to_mean_and_spread(results):
    recall = results.test["onerec"].metrics["recall@10"]
    assert recall.by_seed == {"0": 0.5, "1": 0.75}
    assert recall.mean == pytest.approx(0.625)
    assert recall.spread == pytest.approx(0.25 / np.sqrt(2))
    assert recall.interval[0] <= recall.mean <= recall.interval[1]
    assert results.test["popularity"].metrics["recall@10"].spread is None
    assert results.test["onerec"].requests_per_s == pytest.approx(2)
    assert results.test["onerec"].slices["hot"] == {"rows": 0}


def test_interval_of_several_seeds_resamples_users_not_seeds():
    # Two seeds that hit in turns: their mean is the same for every user, so resampling users changes nothing.
    runs = {"onerec": [make_run(0, [1, 0, 1, 0]), make_run(1, [0, 1, 0, 1])]}
    summary = summarize_runs(runs, "made", SETTINGS).test["onerec"].metrics["recall@1"]
    assert summary.interval == (0.5, 0.5)
    assert summary.spread == 0


def test_comparison_with_the_first(results):
    comparison = results.comparisons["test"]["popularity"]["recall@10"]
    assert comparison.difference == pytest.approx(0.625)
    assert comparison.interval[0] > 0
    assert list(results.comparisons["test"]) == ["popularity"]


def test_the_file_keeps_everything(results, tmp_path):
    path = tmp_path / "metrics.json"
    write_results(path, results)
    assert read_results(path) == results


def test_the_schema_of_the_design(results):
    tree = results.model_dump(mode="json")
    for protocol in ("test", "test_unseen"):
        assert set(tree[protocol]) == {"onerec", "popularity"}
        for summary in tree[protocol].values():
            assert {"invalid_rate", "minutes", "parameters"} <= set(summary)
            for metric in ("recall", "ndcg", "mrr"):
                for k in SETTINGS.ks:
                    assert set(summary[f"{metric}@{k}"]) == {"by_seed", "mean", "spread", "interval"}
    assert tree["validation"] == {}


def test_a_protocol_that_a_run_lacks_is_left_out():
    runs = {
        "onerec": [make_run(0, [1, 2]), make_run(1, [0, 1], ("validation",))],
        "popularity": [make_run(0, [0, 1], ("validation",))],
    }
    results = summarize_runs(runs, "made", SETTINGS)
    assert results.test["onerec"].metrics["recall@1"].by_seed == {"0": 0.5}
    assert results.validation["onerec"].metrics["recall@1"].by_seed == {"1": 0.5}
    assert "popularity" not in results.test


def test_other_targets_are_refused():
    runs = {"onerec": [make_run(0, [1, 2]), make_run(1, [1, 2, 3])]}
    with pytest.raises(DataError, match="same split and sample"):
        summarize_runs(runs, "made", SETTINGS)
    runs = {"onerec": [make_run(0, [1, 2])], "popularity": [make_run(0, [1, 2, 3])]}
    with pytest.raises(DataError, match="same split and sample"):
        summarize_runs(runs, "made", SETTINGS)
    with pytest.raises(DataError, match="no run"):
        summarize_runs({"onerec": []}, "made", SETTINGS)


def test_a_missing_or_damaged_file_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="Run the evaluation first"):
        read_results(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").write_text('{"format_version": 2}')
    with pytest.raises(ArtifactError, match="Run the evaluation again"):
        read_results(tmp_path / "metrics.json")


def test_tables_set_published_figures_of_the_same_protocol_beside_ours(results):
    console = Console(file=io.StringIO(), width=80)
    print_results(results, console)
    allowed, unseen = console.file.getvalue().split("seen items excluded")
    assert ".6250" in allowed
    assert "all 4 targets" in allowed
    assert "TIGER" in allowed
    assert "second-hand" in allowed
    assert "eSASRec" not in allowed
    assert "eSASRec" in unseen
    assert ".0928" in unseen
    assert max(map(len, console.file.getvalue().splitlines())) <= 80


def test_a_sample_is_named_in_the_title():
    evaluation = make_evaluation([1, 2], available=100)
    results = summarize_runs({"onerec": [Run(0, {"test": evaluation}, 1.0, 1)]}, "made", SETTINGS)
    console = Console(file=io.StringIO(), width=200)
    print_results(results, console)
    assert "a sample of 2 of 100 targets" in console.file.getvalue()


def test_published_figures_follow_their_schema_and_are_shares():
    for dataset, rows in _read_file().items():
        figures = [*published_figures(dataset, "seen_allowed"), *published_figures(dataset, "seen_excluded")]
        assert len(figures) == len(rows)
        for row in figures:
            assert row.metrics
            assert all(0 < value < 0.3 for value in row.metrics.values())
            for k in (5, 10):
                assert row.metrics.get(f"ndcg@{k}", 0) <= row.metrics.get(f"recall@{k}", 1)
    assert published_figures("unknown", "seen_allowed") == []


def test_slices_stand_side_by_side_with_short_and_long_lists(results):
    assert slice_table(results, "test").metrics == ["recall@10"]  # the longest list is of ten
    wide = results.model_copy(deep=True)
    wide.settings["ks"] = [1, 5, 10, 50]
    for summary, long in zip(wide.test.values(), (0.75, 0.25), strict=True):
        summary.slices["cold"]["recall@50"] = long
    table = slice_table(wide, "test")
    assert table.metrics == ["recall@10", "recall@50"]
    assert table.slices == {"cold": 1, "hot": 0}
    assert table.rows == {"onerec": [".5000/.7500", "–/–"], "popularity": [".5000/.2500", "–/–"]}
    console = Console(file=io.StringIO(), width=80)
    print_results(wide, console)
    assert ".5000/.7500" in console.file.getvalue()
    assert "R@10/R@50 by" in console.file.getvalue()


def test_the_record_sets_ours_and_published_figures_in_the_columns_of_their_protocols(results, tmp_path, capsys):
    write_results(tmp_path / "amazon14_beauty" / "metrics.json", results)
    config = "model: {d_model: 64, dropout: 0.3}\ntraining: {epochs: 7}\n"
    (tmp_path / "amazon14_beauty" / "config.yaml").write_text(config)
    write_results(tmp_path / "made" / "metrics.json", results.model_copy(update={"dataset": "made", "seeds": [3]}))
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    beauty, made = printed.split("**made**")
    assert "seeds 0, 1; 4 of 4 test targets; width 64, dropout 0.3, 7 epochs, all in" in beauty
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in beauty.splitlines() if line.startswith("|")]
    cells = {row[0]: row[1:] for row in rows}
    # Two of four hit, then three: first and second place twice, the third place once.
    low = f"{(1 + 1 / np.log2(3)) / 4:.4f}".removeprefix("0")
    high = (1 + 1 / np.log2(3) + 1 / 2) / 4
    mean, spread = (float(low) + high) / 2, (high - float(low)) / np.sqrt(2)
    assert cells["onerec"][0] == f".6250 ± .1768 / {mean:.4f} ± {spread:.4f}".replace("0.", ".")
    assert cells["onerec"][2] == cells["onerec"][0]
    assert cells["onerec"][4:6] == ["2", "10"]
    assert cells["onerec"][6].startswith("ours, mean of 2 seeds")
    assert cells["popularity"][6] == "ours"
    assert cells["TIGER"][0] == ".0648 / .0384"
    assert cells["TIGER"][2] == ""
    assert "second-hand" in cells["TIGER"][6]
    assert cells["eSASRec"][0] == ""
    assert cells["eSASRec"][2] == ".0928 / .0523"
    assert "authors' repository; primary" in cells["eSASRec"][6]
    assert cells["DiffGRM"][6].endswith("second-hand; Recall derived from a relative gain")
    assert "seed 3;" in made
    assert "TIGER" not in made


def test_a_record_of_nothing_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "found no */metrics.json" in capsys.readouterr().err
