"""The alignment benchmark: weighted metrics, paired differences over seeds, a column that is not there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.alignment import METRICS, WEIGHTED, Benchmark, summarize
from onerec.data.histories import Split
from onerec.errors import ConfigError
from onerec.evaluation.settings import EvaluationSettings

RANKS = np.array([1, 0, 3, 11])  # found first, not at all, third, beyond the ten
RATINGS = np.array([5.0, 1.0, 2.0, 4.0])


def make_benchmark(weight: str | None) -> Benchmark:
    return Benchmark(Path("config.yaml"), (), Path("runs"), Split.TEST, weight, with_reward=False)


def make_pipeline() -> Any:
    feedback = {"rating": np.concatenate([[3.0, 3.0], RATINGS])}
    return SimpleNamespace(data=SimpleNamespace(histories=SimpleNamespace(feedback=feedback)))


def make_evaluation(ranks_R: np.ndarray) -> Any:
    return SimpleNamespace(ranks_R=ranks_R, targets=SimpleNamespace(rows_R=np.arange(2, 6)))


def test_the_mean_of_the_weighted_column_is_the_weighted_mean() -> None:
    values_RM = make_benchmark("rating").values(make_pipeline(), make_evaluation(RANKS))
    np.testing.assert_allclose(values_RM[:, 0], [1, 0, 1, 0])
    np.testing.assert_allclose(values_RM[:, 1], [1, 0, 0.5, 0])
    assert values_RM[:, 2].mean() == pytest.approx((5 * 1 + 2 * 0.5) / 12)
    assert make_benchmark(None).values(make_pipeline(), make_evaluation(RANKS)).shape == (4, 2)


def test_differences_are_of_the_means_over_the_seeds() -> None:
    benchmark, pipeline = make_benchmark("rating"), make_pipeline()
    better = np.array([1, 1, 3, 11])
    before_SRM = [benchmark.values(pipeline, make_evaluation(ranks)) for ranks in (RANKS, RANKS)]
    after_SRM = [benchmark.values(pipeline, make_evaluation(ranks)) for ranks in (RANKS, better)]
    figures = summarize(before_SRM, after_SRM, np.arange(4), EvaluationSettings(bootstrap_samples=200))
    recall, weighted = figures[METRICS[0]], figures[WEIGHTED]
    assert recall["by_seed"] == pytest.approx([0, 0.25])
    assert (recall["before"], recall["after"], recall["difference"]) == pytest.approx((0.5, 0.625, 0.125))
    assert recall["interval"][0] == 0  # no user got worse
    assert weighted["difference"] == pytest.approx(1 / 12 / 2)


def test_a_weight_that_is_no_feedback_column_is_refused() -> None:
    with pytest.raises(ConfigError, match="found 'stars', expected a feedback column: rating"):
        make_benchmark("stars")._require_weight(make_pipeline())
