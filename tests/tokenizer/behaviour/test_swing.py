import itertools
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenizer.behaviour.swing as swing_module
from tokenizer.behaviour.swing import swing_similarity
from tokenizer.config import SwingSettings
from tokenizer.sequences import Sequences


def of_users(rows: list[list[int]]) -> Sequences:
    items = np.array([item for row in rows for item in row], dtype=np.int32)
    return Sequences(np.cumsum([0, *(len(row) for row in rows)]), items)


def brute_force(rows: list[list[int]], num_items: int, chosen: SwingSettings, seed: int) -> np.ndarray:
    """The published double sum, over unordered pairs of the users that the cap leaves."""
    order = np.random.default_rng(seed).permutation(len(rows))
    met = [set(row) for row in rows]
    users_of = [
        set(
            sorted((user for user in range(len(rows)) if item in met[user]), key=lambda user: order[user])[
                : chosen.max_users_per_item
            ]
        )
        for item in range(num_items)
    ]
    similarity = np.zeros((num_items, num_items))
    for one, other in itertools.permutations(range(num_items), 2):
        for u, v in itertools.combinations(sorted(users_of[one] & users_of[other]), 2):
            weight = (len(met[u]) * len(met[v])) ** -chosen.user_power
            similarity[one, other] += weight / (chosen.alpha + len(met[u] & met[v]))
    return similarity


def test_worked_by_hand() -> None:
    """u0 {0,1,2} and u1 {0,1} share two: 1/sqrt(3*2)/(1+2); u0 and u2 {1,2,3} share two: 1/3/(1+2); u1, u2 one."""
    swing = swing_similarity(of_users([[0, 1, 0, 2], [1, 0], [3, 2, 1]]), 5, SwingSettings(), seed=0)
    expected = np.zeros((5, 5))
    expected[0, 1] = expected[1, 0] = 1 / (6**0.5 * 3)
    expected[1, 2] = expected[2, 1] = 1 / 9
    np.testing.assert_allclose(swing.similarity_NN.toarray(), expected)
    assert (swing.capped_items, swing.left_out) == (0, 0)
    np.testing.assert_array_equal(swing.neighbours(1), [[0, 1], [1, 0], [2, 1]])  # 1 is nearer to 0 than to 2
    np.testing.assert_array_equal(swing.neighbours(2), [[0, 1], [1, 0], [1, 2], [2, 1]])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 6), max_size=7), min_size=1, max_size=8),
    alpha=st.sampled_from([0.0, 1.0, 3.5]),
    power=st.sampled_from([0.0, 0.5]),
    cap=st.sampled_from([2, 3, 1000]),
    seed=st.integers(0, 3),
)
def test_the_published_sum(rows: list[list[int]], alpha: float, power: float, cap: int, seed: int) -> None:
    chosen = SwingSettings(alpha=alpha, user_power=power, max_users_per_item=cap)
    swing = swing_similarity(of_users(rows), 7, chosen, seed)
    np.testing.assert_allclose(swing.similarity_NN.toarray(), brute_force(rows, 7, chosen, seed))


def test_what_the_cap_leaves_out_is_told(caplog: pytest.LogCaptureFixture) -> None:
    rows = [[0, 1], [0, 1], [0, 1], [0, 2]]
    with caplog.at_level(logging.WARNING):
        swing = swing_similarity(of_users(rows), 3, SwingSettings(max_users_per_item=2), seed=0)
    assert (swing.capped_items, swing.left_out) == (2, 3)  # item 0: 2 of 4 users left out; item 1: 1 of 3
    assert "2 items have more than 2 users; 3 of 8 (user, item) meetings are not counted" in caplog.text


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    sequences = of_users([random.integers(0, 30, random.integers(0, 12)).tolist() for _ in range(60)])
    whole = swing_similarity(sequences, 30, SwingSettings(), seed=0).similarity_NN.toarray()
    assert whole.any()
    monkeypatch.setattr(swing_module, "_BLOCK_MEETINGS", 100)
    np.testing.assert_allclose(swing_similarity(sequences, 30, SwingSettings(), seed=0).similarity_NN.toarray(), whole)
