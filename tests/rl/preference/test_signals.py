"""Which columns get a tower, what their questions are, and the refusal of columns that say nothing."""

from typing import Any

import numpy as np
import pytest

from onerec.data.settings import FeedbackKind
from onerec.errors import ConfigError, DataError
from onerec.model.preference.signals import CHOSEN, Signal, feedback_values
from rl.preference.settings import FeedbackTowerSettings
from rl.preference.signals import choose_signals

NAN = float("nan")
ITEMS = np.array([0, 0, 1, 1, 2, 2])
KINDS = dict.fromkeys(("like", "skip", "click", "propensity"), FeedbackKind.BINARY) | {
    "comments": FeedbackKind.COUNT,
    "watch": FeedbackKind.SECONDS,
    "duration": FeedbackKind.SECONDS,
    "rating": FeedbackKind.RATING,
}
FEEDBACK = {
    "like": np.array([0, 1, NAN, 0, 0, 1]),
    "skip": np.array([1, 0, 0, 0, 1, 0]),
    "comments": np.array([0, 3, 0, 1, 0, 0]),
    "watch": np.array([1, 2, 3, 4, 5, NAN]),
    "rating": np.array([5, 5, 5, 4, 3, 5]),
    "duration": np.array([9, 9, 7, 7, 5, 5]),  # one value an item
    "click": np.array([1, 1, 1, 1, NAN, 1]),  # one value
    "propensity": np.array([0, 1, 0, 1, 0, 1]),
}


def choose(**changes: Any) -> tuple[dict[str, Signal], list[str]]:
    feedback = {name: values.astype(np.float32) for name, values in FEEDBACK.items()}
    signals, notes = choose_signals(feedback, ITEMS, KINDS, FeedbackTowerSettings(**changes))
    return {signal.name: signal for signal in signals}, notes


def test_columns_that_say_nothing_of_the_user_are_left_out_and_named() -> None:
    signals, notes = choose()
    assert list(signals) == ["like", "skip", "comments", "watch", "rating"]
    assert [note.split(":")[0] for note in notes] == ["duration", "click", "propensity"]
    assert "the value 1 everywhere" in notes[1]


def test_each_kind_has_its_question() -> None:
    signals, _ = choose()
    assert {name: signal.positive_from for name, signal in signals.items()} == {
        "like": 1,
        "skip": 1,
        "comments": 1,
        "watch": 3,  # the median of 1 to 5
        "rating": 5,
    }
    assert [name for name, signal in signals.items() if not signal.is_good] == ["skip"]
    np.testing.assert_array_equal(signals["watch"].labels(FEEDBACK["watch"]), [0, 0, 1, 1, 1, NAN])
    np.testing.assert_array_equal(signals["comments"].labels(FEEDBACK["comments"]), [0, 1, 0, 1, 0, 0])


def test_a_median_that_all_reach_gives_way_to_the_next_value() -> None:
    values = {"rating": np.array([1, 1, 1, 1, 2, 4], dtype=np.float32)}
    signals, _ = choose_signals(values, ITEMS, KINDS, FeedbackTowerSettings())
    assert signals[0].positive_from == 2


def test_the_question_can_be_stated() -> None:
    signals, _ = choose(good_from={"rating": 4}, pscore_weights={"rating": 2.5}, negative=["like"])
    assert (signals["rating"].positive_from, signals["rating"].pscore_weight) == (4, 2.5)
    assert [name for name, signal in signals.items() if not signal.is_good] == ["like"]


def test_bins_keep_the_order_and_tell_yes_from_no() -> None:
    signals, _ = choose()
    for name, signal in signals.items():
        values = FEEDBACK[name].astype(np.float32)
        bins, known = signal.bins(values), ~np.isnan(values)
        assert (bins[~known] == 0).all()
        assert (bins[known] > 0).all()
        assert bins.max() < signal.num_bins
        order = np.argsort(values[known], kind="stable")
        assert (np.diff(bins[known][order]) >= 0).all()
        yes = values[known] >= signal.positive_from
        assert not set(bins[known][yes]) & set(bins[known][~yes])
    assert signals["like"].bins(np.array([0.0, 1.0, NAN])).tolist() == [1, 2, 0]


def test_random_items_get_a_tower_of_their_own() -> None:
    signals, _ = choose(columns=[], sampled_negatives=3)
    assert list(signals) == [CHOSEN]
    assert signals[CHOSEN].mean == 0.25
    assert feedback_values(list(signals.values()), {}, 2).tolist() == [[1.0], [1.0]]


def test_values_stand_in_the_order_of_towers() -> None:
    signals, _ = choose(columns=["watch", "like"])
    found = feedback_values(list(signals.values()), FEEDBACK, 6)
    np.testing.assert_array_equal(found[:, 0], FEEDBACK["watch"])
    np.testing.assert_array_equal(found[:, 1], FEEDBACK["like"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"columns": ["click"]}, DataError, "found the value 1 everywhere in 'click'"),
        ({"columns": ["likes"]}, DataError, "found no feedback column 'likes', expected some of like, skip"),
        ({"columns": []}, DataError, "at least one binary, count, seconds or rating column.*sampled_negatives=4"),
        ({"pscore_weights": {"lke": 1}}, ConfigError, "pscore_weights: no tower 'lke'. Did you mean 'like'"),
        ({"pscore_weights": {"click": 1}}, ConfigError, "no tower 'click'"),
        ({"good_from": {"rating": 9}}, ConfigError, "found 9 for 'rating', whose training values go from 3 to 5"),
        ({"good_from": {"rating": 3}}, ConfigError, "some of them reach and others do not"),
        ({"good_from": {"like": 1}}, ConfigError, "'like' is binary, expected a column of seconds or ratings"),
    ],
)
def test_what_cannot_be_learnt_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        choose(**changes)


def test_a_log_of_positives_alone_is_refused_with_the_ways_out() -> None:
    with pytest.raises(DataError, match=r"found no feedback column that varies \(the events have none\)"):
        choose_signals({}, ITEMS, {}, FeedbackTowerSettings())


def test_a_column_called_as_the_tower_of_random_items_is_refused() -> None:
    feedback = {CHOSEN: FEEDBACK["skip"].astype(np.float32)}
    kinds = {CHOSEN: FeedbackKind.BINARY}
    with pytest.raises(ConfigError, match="have a feedback column 'chosen' already"):
        choose_signals(feedback, ITEMS, kinds, FeedbackTowerSettings(sampled_negatives=1))


def test_another_log_without_the_column_is_refused() -> None:
    signals, _ = choose()
    with pytest.raises(DataError, match="these events have no feedback column 'like'"):
        feedback_values(list(signals.values()), {"rating": FEEDBACK["rating"]}, 6)
