"""What pathways read, by hand: every event once, nothing of a target or after it, the same in training and serving."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onerec.data.batches import TrainingWindows, many_target_windows, one_target_windows
from onerec.data.features import key_of
from onerec.data.histories import Histories, Split
from onerec.data.pathway_settings import CategorySpec, NumberSpec, PathwaySettings, PathwaySpec
from onerec.data.pathways import EventSource, PathwayReader, UserEvents, WindowPathways
from onerec.errors import DataError

NAN = float("nan")
RATINGS = NumberSpec(name="rating", edges=(2.5, 3.5))
TIMES = NumberSpec(name="timestamp", edges=(1.0, 60.0))
VECTORS = np.array([[0, 0], [0, 1], [9, 0], [9, 1], [0, 9], [50, 50]], dtype=np.float32)


def spec_of(**pathways: Any) -> PathwaySpec:
    asked = PathwaySettings.model_validate(pathways)
    static = (CategorySpec(name="gender", num_own=2, num_shared=0),) if asked.static else ()
    return PathwaySpec(settings=asked, static=static, numbers=(RATINGS, TIMES), vector_width=2)


def reader_of(**pathways: Any) -> PathwayReader:
    return PathwayReader(spec_of(**pathways), VECTORS)


ALL: dict[str, Any] = {
    "static": {},
    "short_term": {},
    "positive": {"column": "rating", "minimum": 4, "length": 2},
    "lifelong": {"max_representatives": 2, "max_cluster_items": 2},
}
EVENTS = UserEvents(
    items=np.array([0, 2, 1, 3, 4]),
    timestamps=np.array([100, 160, 160, 400, 1000]),
    feedback={"rating": np.array([5, 4, NAN, 2, 4], dtype=np.float32)},
    profile={"gender": "F"},
)


def read(events: UserEvents, length: int, width: int | None = None, **pathways: Any) -> dict[str, torch.Tensor]:
    return reader_of(**pathways).read([events], np.array([length]), length if width is None else width)


def expect(found: torch.Tensor, expected: list[Any]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), equal_nan=True, rtol=0, atol=0)


def test_short_term_values_by_hand() -> None:
    batch = read(EVENTS, 2, width=3, short_term={})
    assert list(batch) == ["event_values"]
    expect(batch["event_values"], [[[2, 240], [4, 600], [0, 0]]])  # rating, seconds since the event before; padding
    expect(read(EVENTS, 5, short_term={})["event_values"][0, :2], [[5, NAN], [4, 60]])  # nothing before the first


def test_times_are_those_of_the_short_term_history() -> None:
    bare, late = UserEvents(np.array([3])), UserEvents(np.array([3, 1]), np.array([5.5, 1_700_000_001.0]))
    batch = reader_of(times=True).read([EVENTS, bare, late], np.array([2, 1, 1]), 3)
    assert list(batch) == ["times"]
    expect(batch["times"], [[400, 1000, NAN], [NAN, NAN, NAN], [1_700_000_001, NAN, NAN]])


def test_static_keys_by_hand() -> None:
    batch = reader_of(static={}).read([EVENTS, UserEvents(np.array([1]))], np.array([5, 1]), 5)
    assert batch["static_keys"].tolist() == [[key_of("F")], [0]]


def test_positive_events_are_the_newest_before_the_short_term_history() -> None:
    batch = read(EVENTS, 1, positive=ALL["positive"])
    assert batch["positive_items"].tolist() == [[1, 3]]  # items 0 and 2; 4 is the short-term history's
    expect(batch["positive_values"], [[[5, 900], [4, 840]]])  # seconds before the oldest short-term event
    newest = read(EVENTS, 1, positive=ALL["positive"] | {"length": 1})
    assert newest["positive_items"].tolist() == [[3]]


def test_clusters_by_hand() -> None:
    batch = read(EVENTS, 1, lifelong=ALL["lifelong"])
    # Items 0, 1 and 2, 3 lie together; both are as near to their mean, so the older event stands for the cluster.
    assert batch["lifelong_items"].tolist() == [[1, 3]]
    expect(batch["lifelong_values"], [[[5, 870], [3, 720]]])  # means of what is known


def test_clusters_are_refreshed_every_so_many_events() -> None:
    lifelong = {"refresh_events": 3}
    assert read(EVENTS, 1, lifelong=lifelong)["lifelong_items"].tolist() == [[1, 3, 2]]  # of four older events
    assert read(EVENTS, 3, lifelong=lifelong)["lifelong_items"].tolist() == [[0]]  # of two


def test_a_request_that_tells_items_alone_is_read_as_missing() -> None:
    batch = read(UserEvents(np.array([3, 1, 2])), 2, **ALL)
    assert batch["static_keys"].tolist() == [[0]]
    assert batch["event_values"].isnan().all()
    assert batch["positive_items"].tolist() == [[0]]
    assert batch["lifelong_items"].tolist() == [[4]]
    assert batch["lifelong_values"].isnan().all()


def test_a_user_without_events_has_one_place_of_padding() -> None:
    batch = read(UserEvents(np.array([], dtype=np.int64)), 0, width=1, **ALL)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "static_keys": (1, 1),
        "event_values": (1, 1, 2),
        "positive_items": (1, 1),
        "positive_values": (1, 1, 2),
        "lifelong_items": (1, 1),
        "lifelong_values": (1, 1, 2),
    }


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"timestamps": np.array([1, 2])}, "found 2 values of 'timestamps' for 3 items"),
        ({"feedback": {"rating": np.ones(4)}}, "found 4 values of 'rating' for 3 items"),
        ({"timestamps": np.array([1, 3, 2])}, "timestamps that descend"),
    ],
)
def test_columns_that_do_not_fit_the_items_are_refused(columns: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        UserEvents(np.array([3, 1, 2]), **columns)


def random_histories(lengths: list[int], seed: int = 0) -> Histories:
    """Users of so many training events and a held-out one."""
    rng = np.random.default_rng(seed)
    counts = np.array(lengths) + 1
    offsets = np.concatenate([[0], np.cumsum(counts)])
    splits = np.zeros(offsets[-1], dtype=np.uint8)
    splits[offsets[1:] - 1] = Split.TEST
    times = np.concatenate([np.sort(rng.integers(0, 5000, count)) for count in counts])
    ratings = rng.integers(1, 6, offsets[-1]).astype(np.float32)
    items = rng.integers(0, len(VECTORS), offsets[-1]).astype(np.int32)
    return Histories(offsets, items, times, splits, {"rating": ratings})


def windows_of(histories: Histories, max_items: int, one_target: bool) -> tuple[TrainingWindows, WindowPathways]:
    make_windows = one_target_windows if one_target else many_target_windows
    profiles = [{"gender": "MF"[user % 2]} for user in range(histories.num_users)]
    source = EventSource(histories.training(), profiles)
    return make_windows(histories, max_items), WindowPathways(reader_of(**ALL), source)


@pytest.mark.parametrize("one_target", [False, True])
@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(0, 13), min_size=1, max_size=2), max_items=st.integers(1, 5), seed=st.integers(0, 9)
)
def test_no_window_reads_a_target_or_what_came_after(
    one_target: bool, lengths: list[int], max_items: int, seed: int
) -> None:
    windows, pathways = windows_of(random_histories(lengths, seed), max_items, one_target)
    for start, stop, first_target in zip(windows.starts, windows.stops, windows.first_targets, strict=True):
        before = read_window(pathways, start, stop)
        # The last event is a target alone: nothing that is read knows of it.
        assert_same(read_window(altered(pathways, stop - 1), start, stop), before)
        # All targets follow the window's first event, or are it where nothing is older.
        assert first_target > start or not (before["positive_items"].any() or before["lifelong_items"].any())
        older = read_window(altered(pathways, start), start, stop)
        assert_same({name: older[name] for name in before if name.startswith(("positive", "lifelong"))}, before)
        # A short-term event's own values know of nothing later.
        for place in range(stop - 1 - start):
            later = read_window(altered(pathways, start + place + 1), start, stop)["event_values"]
            assert_same(
                {"event_values": later[:, : place + 1]}, {"event_values": before["event_values"][:, : place + 1]}
            )


def read_window(pathways: WindowPathways, start: int, stop: int) -> dict[str, torch.Tensor]:
    return pathways.read(np.array([start]), np.array([stop]), width=max(int(stop - 1 - start), 1))


def altered(pathways: WindowPathways, row: int) -> WindowPathways:
    """The same log with another item and rating in every event from `row` on, and another time after it."""
    log = pathways.source.histories
    items, ratings, times = log.items.copy(), log.feedback["rating"].copy(), log.timestamps.copy()
    items[row:] = (items[row:] + 1) % len(VECTORS)
    ratings[row:] = 6 - ratings[row:]
    times[row + 1 :] += 1000
    changed = Histories(log.offsets, items, times, log.splits, {"rating": ratings})
    return WindowPathways(pathways.reader, EventSource(changed, pathways.source.profiles))


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], equal_nan=True, msg=name)


def test_training_reads_what_serving_reads() -> None:
    histories = random_histories([3, 17, 9])
    training = histories.training()
    for one_target in (False, True):
        windows, pathways = windows_of(histories, 4, one_target)
        for window in range(len(windows)):
            start, stop = windows.starts[window], windows.stops[window]
            width = max(int(stop - 1 - start), 1)
            trained = pathways.read(np.array([start]), np.array([stop]), width)
            user = training.users_of(np.array([stop - 1]))[0]
            past = slice(training.offsets[user], stop - 1)
            sent = UserEvents(
                training.items[past].astype(np.int64).copy(),
                training.timestamps[past].copy(),
                {"rating": training.feedback["rating"][past].copy()},
                {"gender": "MF"[user % 2]},
            )
            served = pathways.reader.read([sent], np.array([stop - 1 - start]), width)
            for name, tensor in trained.items():
                torch.testing.assert_close(served[name], tensor, equal_nan=True)


@pytest.mark.parametrize("one_target", [False, True])
def test_windows_count_the_older_events_that_they_read(one_target: bool) -> None:
    windows, pathways = windows_of(random_histories([3, 17, 9]), 4, one_target)
    plain = windows.num_untrained_positions
    windows = replace(windows, pathways=pathways)
    batch = windows.collate(np.arange(len(windows)))["pathways"]
    positive = (batch["positive_items"] != 0).sum(dim=1).numpy()
    firsts = pathways.source.histories.offsets[pathways.source.histories.users_of(windows.starts)]
    clustered = np.minimum(windows.starts - firsts, ALL["lifelong"]["max_representatives"])
    assert positive.max() == ALL["positive"]["length"]
    np.testing.assert_array_equal(windows.num_untrained_positions, plain + positive + clustered)


def test_company_in_a_batch_changes_nothing_but_padding() -> None:
    _, pathways = windows_of(random_histories([12, 3]), 4, one_target=False)
    source = pathways.source
    requests = [source.before(int(row)) for row in (11, 14)]
    lengths = np.array([4, 2])
    together = pathways.reader.read(requests, lengths, 4)
    for row, (events, length) in enumerate(zip(requests, lengths, strict=True)):
        alone = pathways.reader.read([events], np.array([length]), 4)
        for name, tensor in alone.items():
            width = tensor.shape[1]
            torch.testing.assert_close(together[name][row, :width], tensor[0], equal_nan=True)
            assert not together[name][row, width:].any()
