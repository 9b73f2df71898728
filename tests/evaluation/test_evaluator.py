from dataclasses import dataclass, field

import numpy as np
import pytest

from onerec.baselines.scoring import rank_scores
from onerec.data.histories import Histories, Split
from onerec.errors import DataError
from onerec.evaluation import metrics
from onerec.evaluation.evaluator import check_order, compare, evaluate
from onerec.evaluation.recommender import Ranking
from onerec.evaluation.settings import EvaluationSettings

SETTINGS = EvaluationSettings(ks=(1, 2, 3), batch_size=2, exposure_k=2, hot_min_count=2, bootstrap_samples=50)


@dataclass
class Data:
    histories: Histories
    num_items: int


@dataclass
class ByScore:
    """Scores items by a fixed table and remembers what it was asked."""

    scores_N: np.ndarray
    name: str = "by_score"
    asked: list[list[int]] = field(default_factory=list)

    def recommend(self, histories, k, exclude_seen):
        self.asked += [history.tolist() for history in histories]
        return rank_scores(np.tile(self.scores_N, (len(histories), 1)), histories, k, exclude_seen)


def make_histories(*sequences: list[int]) -> Histories:
    """Leave-one-out over the given sequences; a user of one event has only a test event."""
    lengths = [len(sequence) for sequence in sequences]
    splits = [([0] * length + [1, 2])[2:] if length > 1 else [2] * length for length in lengths]
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.array([item for sequence in sequences for item in sequence], dtype=np.int32),
        timestamps=np.concatenate([np.arange(length) for length in lengths]).astype(np.int64),
        splits=np.array([label for labels in splits for label in labels], dtype=np.uint8),
    )


@pytest.fixture
def data() -> Data:
    # Training counts of items 0..4: 2, 1, 1, 0, 0.
    return Data(make_histories([0, 1, 2, 3], [0, 2, 1, 0], [4]), num_items=5)


def test_by_hand(data):
    recommender = ByScore(np.array([5.0, 4.0, 3.0, 2.0, 1.0]))
    results = evaluate(recommender, data, Split.TEST, SETTINGS, show_progress=False)
    assert list(results) == ["test", "test_unseen"]
    # Every history is complete, the validation item included, and the last batch is neither padded nor dropped.
    assert recommender.asked == [[0, 1, 2], [0, 2, 1], []] * 2

    allowed, unseen = results["test"], results["test_unseen"]
    np.testing.assert_array_equal(allowed.ranks_R, [0, 1, 0])  # targets 3, 0, 4 in the lists 0, 1, 2
    np.testing.assert_array_equal(unseen.ranks_R, [1, 0, 0])  # lists 3 4; 3 4; 0 1 2
    assert allowed.metrics["recall@3"] == pytest.approx(1 / 3)
    assert unseen.unreachable_targets == 1
    assert allowed.unreachable_targets == 0
    assert allowed.empty_histories == unseen.empty_histories == 1
    assert (allowed.invalid_rate, unseen.invalid_rate) == (0, 0)
    assert allowed.unfilled_rate == 0
    assert unseen.unfilled_rate == pytest.approx(2 / 9)
    # The two best places: 0 and 1 three times allowed; 3, 4 twice and 0, 1 once unseen.
    assert allowed.exposure["coverage@2"] == pytest.approx(2 / 5)
    assert unseen.exposure["coverage@2"] == pytest.approx(4 / 5)
    # Percentiles by the counts 2, 1, 1, 0, 0: .9, .6, .6, .2, .2
    assert allowed.exposure["popularity@2"] == pytest.approx((0.9 + 0.6) / 2)
    assert allowed.exposure["target_popularity"] == pytest.approx((0.2 + 0.9 + 0.2) / 3)


def test_slices_cover_all_rows(data):
    result = evaluate(ByScore(np.arange(5.0)), data, Split.TEST, SETTINGS, show_progress=False)["test"]
    rows = {name: values["rows"] for name, values in result.slices.items()}
    assert rows == {"cold": 2, "warm": 0, "hot": 1, "head": 1, "tail": 2}
    assert result.slices["warm"] == {"rows": 0}
    assert result.slices["cold"]["recall@1"] == pytest.approx(1 / 2)


def test_validation_sees_training_only(data):
    recommender = ByScore(np.arange(5.0))
    settings = SETTINGS.model_copy(update={"protocols": ("seen_allowed",)})
    results = evaluate(recommender, data, Split.VALIDATION, settings, show_progress=False)
    assert list(results) == ["validation"]
    assert recommender.asked == [[0, 1], [0, 2]]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batch_size_changes_nothing(batch_size):
    rng = np.random.default_rng(0)
    data = Data(make_histories(*[rng.integers(30, size=rng.integers(1, 9)).tolist() for _ in range(41)]), 30)
    scores = rng.random(30)
    expected = evaluate(ByScore(scores), data, Split.TEST, SETTINGS, show_progress=False)
    settings = SETTINGS.model_copy(update={"batch_size": batch_size})
    found = evaluate(ByScore(scores), data, Split.TEST, settings, show_progress=False)
    for name, evaluation in found.items():
        assert {**evaluation.to_dict(), "seconds": 0} == {**expected[name].to_dict(), "seconds": 0}
        np.testing.assert_array_equal(evaluation.ranks_R, expected[name].ranks_R)


def test_agrees_with_naive_loops():
    rng = np.random.default_rng(3)
    sequences = [rng.integers(20, size=rng.integers(2, 9)).tolist() for _ in range(25)]
    scores = rng.random(20)
    result = evaluate(ByScore(scores), Data(make_histories(*sequences), 20), Split.TEST, SETTINGS, show_progress=False)
    for name, evaluation in result.items():
        ranks = []
        for *history, target in sequences:
            seen = set(history) if name == "test_unseen" else set()
            order = sorted((item for item in range(20) if item not in seen), key=lambda item: -scores[item])[:3]
            ranks.append(order.index(target) + 1 if target in order else metrics.NOT_RANKED)
        np.testing.assert_array_equal(evaluation.ranks_R, ranks)


def test_a_sample_is_seeded_and_named(data):
    settings = SETTINGS.model_copy(update={"max_rows": 2})
    first, again = (
        evaluate(ByScore(np.arange(5.0)), data, Split.TEST, settings, show_progress=False)["test"] for _ in range(2)
    )
    np.testing.assert_array_equal(first.targets.rows_R, again.targets.rows_R)
    assert (first.to_dict()["rows"], first.to_dict()["rows_available"]) == (2, 3)


def test_comparison_of_two_recommenders(data):
    good, bad = (
        evaluate(ByScore(scores), data, Split.TEST, SETTINGS, show_progress=False)["test"]
        for scores in (np.arange(5.0), -np.arange(5.0))
    )
    difference = compare(good, bad, SETTINGS)["recall@2"]
    assert difference.difference == pytest.approx(good.metrics["recall@2"] - bad.metrics["recall@2"])
    sampled = SETTINGS.model_copy(update={"max_rows": 2})
    other = evaluate(ByScore(np.arange(5.0)), data, Split.TEST, sampled, show_progress=False)["test"]
    with pytest.raises(DataError, match="different targets"):
        compare(good, other, SETTINGS)


def test_a_split_without_targets_is_refused():
    data = Data(make_histories([1], [2]), 3)
    with pytest.raises(DataError, match="validation split holds no event"):
        evaluate(ByScore(np.arange(3.0)), data, Split.VALIDATION, SETTINGS)


def test_events_out_of_order_are_refused():
    histories = make_histories([0, 1, 2], [0, 1])
    check_order(histories)
    histories.timestamps[4] = -1
    with pytest.raises(DataError, match="user 1: timestamps descend at row 4"):
        check_order(histories)


def test_users_without_events_do_not_upset_the_order():
    check_order(make_histories([], [0, 1, 2], [], [], [0, 1], []))


class Returns:
    name = "returns"

    def __init__(self, items, scores):
        self.ranking = Ranking(np.asarray(items, dtype=np.int32), np.asarray(scores, dtype=np.float32))

    def recommend(self, histories, k, exclude_seen):
        return self.ranking


@pytest.mark.parametrize(
    ("items", "scores", "message"),
    [
        ([[0, 1]], [[1, 0]], r"expected \(1, 3\)"),
        ([[0, -1, 1]], [[1, 0, 0]], "gap"),
        ([[0, 1, 2]], [[0, 1, 0]], "rise along a list"),
    ],
)
def test_lists_that_break_the_protocol_are_refused(items, scores, message):
    data = Data(make_histories([0]), 3)
    with pytest.raises(DataError, match=message):
        evaluate(Returns(items, scores), data, Split.TEST, SETTINGS, show_progress=False)


def test_invalid_items_are_counted():
    data = Data(make_histories([0]), 3)
    result = evaluate(Returns([[7, 7, -1]], [[1, 0, -1]]), data, Split.TEST, SETTINGS, show_progress=False)
    assert result["test"].invalid_rate == 1
    assert result["test"].exposure["coverage@2"] == 0
    assert "popularity@2" not in result["test"].exposure
