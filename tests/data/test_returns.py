"""Returns by hand and against a loop; windows carry those of their targets; what cannot be granted is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onerec.data.batches import many_target_windows
from onerec.data.histories import Histories
from onerec.data.pathway_settings import NumberSpec, PathwaySettings, PathwaySpec
from onerec.data.pathways import EventSource, PathwayReader, UserEvents, WindowPathways
from onerec.data.returns import returns_of
from onerec.errors import DataError

NAN = float("nan")


def histories_of(*users: list[float]) -> Histories:
    offsets = np.concatenate([[0], np.cumsum([len(values) for values in users])]).astype(np.int64)
    watched = np.array([value for values in users for value in values], dtype=np.float32)
    count = len(watched)
    splits = np.zeros(count, dtype=np.uint8)
    return Histories(offsets, np.arange(count, dtype=np.int32), np.arange(count), splits, {"watch": watched})


def reader_of(*columns: str) -> PathwayReader:
    settings = PathwaySettings.model_validate({"returns": {"columns": columns}} if columns else {})
    spec = PathwaySpec(settings=settings, returns=tuple(NumberSpec(name=name, edges=(2.0,)) for name in columns))
    return PathwayReader(spec, np.zeros((9, 0), dtype=np.float32))


def test_by_hand() -> None:
    histories = histories_of([1, NAN, 3], [5, 7], [NAN])
    np.testing.assert_array_equal(returns_of(histories, ["watch"], 1)[:, 0], [1, NAN, 3, 5, 7, NAN])
    np.testing.assert_array_equal(returns_of(histories, ["watch"], 2)[:, 0], [1, 3, 3, 6, 7, NAN])
    np.testing.assert_array_equal(returns_of(histories, ["watch"], 9)[:, 0], [2, 3, 3, 6, 7, NAN])


@given(
    st.lists(st.lists(st.one_of(st.just(NAN), st.integers(0, 9)), min_size=1, max_size=6), min_size=1, max_size=4),
    st.integers(1, 7),
)
def test_against_a_loop(users: list[list[float]], horizon: int) -> None:
    expected = []
    for values in users:
        for place in range(len(values)):
            known = [value for value in values[place : place + horizon] if value == value]
            expected.append(sum(known) / len(known) if known else NAN)
    found = returns_of(histories_of(*users), ["watch"], horizon)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)


def test_a_window_carries_the_return_of_each_target_and_no_other() -> None:
    histories = histories_of([1, 2, 3, 4, 5, 6, 7], [10, 20])
    pathways = WindowPathways(reader_of("watch"), EventSource(histories, [{}] * 2))
    windows = many_target_windows(histories, max_items=4)
    batch = windows.collate(np.arange(len(windows)))
    found = pathways.read(windows.starts, windows.stops, batch["input_ids"].shape[1])["returns"]
    targets_BP = batch["target_items"].numpy()
    returns_BP = found[:, -targets_BP.shape[1] :, 0].numpy()
    counted_BP = targets_BP >= 0
    np.testing.assert_array_equal(returns_BP[counted_BP], histories.feedback["watch"][targets_BP[counted_BP]])
    assert sorted(targets_BP[counted_BP]) == list(range(9))


def test_a_request_carries_its_wishes() -> None:
    wishing, other = UserEvents(np.array([1]), wished={"like": 1.0}), UserEvents(np.array([2]))
    batch = reader_of("watch", "like").read([wishing, other], np.array([1, 1]), 1)
    np.testing.assert_array_equal(batch["returns"].numpy(), [[[NAN, 1]], [[NAN, NAN]]])


@pytest.mark.parametrize(
    ("columns", "wished", "message"),
    [
        (("watch",), {"wach": 1.0}, "found 1.0 of 'wach', expected finite numbers of columns.*(watch)"),
        (("watch",), {"watch": NAN}, "found nan of 'watch', expected finite numbers"),
        ((), {"watch": 1.0}, "none: train with model.pathways.returns"),
    ],
)
def test_what_cannot_be_granted_is_refused(columns: tuple[str, ...], wished: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        reader_of(*columns).read([UserEvents(np.array([1]), wished=wished)], np.array([1]), 1)
