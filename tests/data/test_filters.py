from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onerec.data.filters import find_core
from onerec.data.settings import CoreSettings


def brute_core(pairs: list[tuple[int, int]], user_events: int, item_events: int) -> list[tuple[int, int]]:
    """Drop one event at a time, whichever comes first, until none may go."""
    left = list(pairs)
    while True:
        users, items = Counter(user for user, _ in left), Counter(item for _, item in left)
        poor = [pair for pair in left if users[pair[0]] < user_events or items[pair[1]] < item_events]
        if not poor:
            return left
        left.remove(poor[0])


def test_core_by_hand() -> None:
    # Item 2 falls first, then user 1 has one event left, then nothing more goes: item 0 keeps users 0 and 2.
    users, items = np.array([0, 0, 1, 1, 2, 2, 0]), np.array([0, 1, 0, 2, 0, 1, 1])
    core = find_core(users, items, 4, CoreSettings(user_events=2, item_events=2))
    np.testing.assert_array_equal(core.events, [True, True, False, False, True, True, True])
    np.testing.assert_array_equal(core.items, [True, True, False, False])
    assert core.num_rounds == 2


def test_without_an_item_minimum_the_whole_catalogue_stays() -> None:
    core = find_core(np.array([0, 0, 1]), np.array([0, 1, 1]), 5, CoreSettings(user_events=2))
    np.testing.assert_array_equal(core.events, [True, True, False])
    assert core.items.all()


def test_off_keeps_everything() -> None:
    core = find_core(np.array([0, 1]), np.array([0, 1]), 3, CoreSettings())
    assert core.events.all()
    assert core.items.all()
    assert core.num_rounds == 0


def test_a_core_may_be_empty() -> None:
    core = find_core(np.array([0, 1]), np.array([0, 1]), 2, CoreSettings(user_events=5, item_events=5))
    assert not core.events.any()
    assert not core.items.any()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60),
    st.integers(0, 4),
    st.integers(0, 4),
)
def test_core_equals_dropping_one_event_at_a_time(pairs: list[tuple[int, int]], by_user: int, by_item: int) -> None:
    users, items = np.array(pairs).T
    core = find_core(users, items, 7, CoreSettings(user_events=by_user, item_events=by_item))
    kept = [pair for pair, stays in zip(pairs, core.events, strict=True) if stays]
    assert Counter(kept) == Counter(brute_core(pairs, by_user, by_item))
