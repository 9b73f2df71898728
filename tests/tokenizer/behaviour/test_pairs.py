from typing import Any

import numpy as np
import pytest

from tokenizer.behaviour.pairs import behaviour_pairs, user_pairs
from tokenizer.config import TokenizerSettings
from tokenizer.errors import DataError
from tokenizer.sequences import Sequences
from tokenizer.settings import build_settings

VECTORS = np.array([[1, 0], [1, 1], [0, 2], [0, 0], [-1, 0.1]])


def make(**groups: Any) -> TokenizerSettings:
    return build_settings(TokenizerSettings, {"behaviour": {"weight": 1, **groups}}, "test")


def test_closest_of_the_recent_worked_by_hand() -> None:
    """User 1: 0 1 2 4, user 2: 2 0. Item 2 is nearer to 1 (45 degrees) than to 0 (90), 4 nearer to 2 than to 1, 0."""
    sequences = Sequences(np.array([0, 4, 6]), np.array([0, 1, 2, 4, 2, 0]))
    np.testing.assert_array_equal(user_pairs(sequences, VECTORS, 5), [[1, 0], [2, 1], [4, 2], [0, 2]])


def test_only_the_recent_count_and_not_other_users() -> None:
    """0 2 1: of both, 0 and 2 are equally near to 1, and the most recent is taken; 0 2 4 0: 1 event back is 4."""
    tied = Sequences(np.array([0, 3]), np.array([0, 2, 1]))
    np.testing.assert_array_equal(user_pairs(tied, VECTORS, 5), [[2, 0], [1, 2]])
    window = Sequences(np.array([0, 1, 4]), np.array([1, 1, 4, 0]))
    np.testing.assert_array_equal(user_pairs(window, VECTORS, 1), [[4, 1], [0, 4]])
    np.testing.assert_array_equal(user_pairs(window, VECTORS, 2), [[4, 1], [0, 1]])


def test_the_item_itself_and_items_without_a_vector_give_no_pair() -> None:
    sequences = Sequences(np.array([0, 4]), np.array([0, 0, 3, 1]))
    np.testing.assert_array_equal(user_pairs(sequences, VECTORS, 1), np.zeros((0, 2)))
    np.testing.assert_array_equal(user_pairs(sequences, VECTORS, 2), [[1, 0]])


def test_both_kinds_of_items_that_can_be_read(sequences: Sequences) -> None:
    known = np.ones(120, dtype=bool)
    known[sequences.items[0]] = False
    pairs = behaviour_pairs(sequences, known, make())
    assert pairs.num_user_pairs > 100
    assert pairs.num_swing_pairs > 20
    assert len(pairs.pairs_P2) == pairs.num_user_pairs + pairs.num_swing_pairs
    assert not (pairs.pairs_P2 == sequences.items[0]).any()
    assert (pairs.pairs_P2[:, 0] % 12 == pairs.pairs_P2[:, 1] % 12).all()  # users stay within a kind
    swing_only = behaviour_pairs(sequences, known, make(swing={"neighbours": 0}))
    assert (swing_only.num_swing_pairs, swing_only.num_user_pairs) == (0, pairs.num_user_pairs)


def test_nothing_to_draw_together(sequences: Sequences) -> None:
    with pytest.raises(DataError, match="no two items with text or image are met by one user"):
        behaviour_pairs(sequences, np.zeros(120, dtype=bool), make())
