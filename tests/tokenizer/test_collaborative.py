import numpy as np
import pytest

from tokenizer.collaborative import collaborative_vectors, cooccurrences, positive_pmi
from tokenizer.config import CollaborativeSettings
from tokenizer.errors import DataError
from tokenizer.sequences import Sequences


def test_cooccurrences_worked_by_hand() -> None:
    """User 1: 0 1 2; user 2: 2 0. Distance 1 counts 1, distance 2 counts 1/2, no pair across users."""
    sequences = Sequences(np.array([0, 3, 5]), np.array([0, 1, 2, 2, 0]))
    counts = cooccurrences(sequences, 4, window_events=2, decay=True).toarray()
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = 1
    expected[1, 2] = expected[2, 1] = 1
    expected[0, 2] = expected[2, 0] = 0.5 + 1
    np.testing.assert_allclose(counts, expected)


def test_an_item_does_not_meet_itself() -> None:
    counts = cooccurrences(Sequences(np.array([0, 3]), np.array([1, 1, 0])), 2, window_events=2, decay=False)
    np.testing.assert_allclose(counts.toarray(), [[0, 2], [2, 0]])


def test_ppmi_worked_by_hand() -> None:
    """Totals 4, 4, 2 of 10: PMI(0,1) = log(3 * 10 / 16), PMI(0,2) = log(1 * 10 / 8)."""
    counts = np.array([[0, 3, 1], [3, 0, 1], [1, 1, 0]], dtype=float)
    import scipy.sparse

    values = positive_pmi(scipy.sparse.csr_array(counts), smoothing=1.0, shift=1.0).toarray()
    both, rare = np.log(30 / 16), np.log(10 / 8)
    np.testing.assert_allclose(values, [[0, both, rare], [both, 0, rare], [rare, rare, 0]])


def test_items_met_together_are_near_and_unmet_ones_zero(sequences: Sequences) -> None:
    vectors = collaborative_vectors(sequences, 121, CollaborativeSettings(width=12), seed=0)
    assert vectors.dtype == np.float32
    met = np.flatnonzero(vectors.any(axis=1))
    assert 120 not in met
    unit = vectors[met] / np.linalg.norm(vectors[met], axis=1, keepdims=True)
    same_kind = (met % 12)[:, None] == (met % 12)[None, :]
    similarity = unit @ unit.T
    assert similarity[same_kind].mean() > 0.5 > 0.2 > similarity[~same_kind].mean()


def test_same_seed_same_vectors(sequences: Sequences) -> None:
    settings = CollaborativeSettings(width=6)
    first, second = (collaborative_vectors(sequences, 120, settings, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_width_is_cut_to_what_the_data_can_carry(caplog: pytest.LogCaptureFixture) -> None:
    sequences = Sequences(np.array([0, 3]), np.array([0, 1, 2]))
    assert collaborative_vectors(sequences, 5, CollaborativeSettings(width=96), seed=0).shape == (5, 2)
    assert "cut to 2" in caplog.text


def test_no_two_items_meet() -> None:
    with pytest.raises(DataError, match="no two different items meet"):
        collaborative_vectors(Sequences(np.array([0, 1, 2]), np.array([0, 1])), 2, CollaborativeSettings(), seed=0)
