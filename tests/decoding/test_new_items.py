"""Places kept for new items: by hand, and against the scores of the whole catalogue one by one."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from onerec.decoding.beam import BeamResult
from onerec.decoding.new_items import NewItemSlots, join
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.trie import Trie
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec

SIZES, NUM_ITEMS = (5, 4, 4), 40
CODES_NL = np.stack(np.unravel_index(np.random.default_rng(0).choice(80, NUM_ITEMS, replace=False), SIZES), axis=1)
NEW = [3, 8, 9, 21, 30, 39]  # 39 joined when the training events had been counted
TRAINED_N = ~np.isin(np.arange(39), NEW)
HISTORIES = [np.array([3, 7, 3]), np.array([], dtype=np.int64), np.array([9, 1, 30, 2, 11, 12, 13, 14])]


@pytest.fixture(scope="module")
def model() -> OneRec:
    torch.manual_seed(0)
    model = OneRec(OneRecConfig(SIZES, NUM_ITEMS, d_model=16, d_ff=32, max_history_items=6, item_head_weight=1.0))
    model.set_codes(CODES_NL, "hash")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def make_recommender(model: OneRec, count: int, rescoring: float = 0.0, num_beams: int = 40) -> OneRecRecommender:
    slots = NewItemSlots(count, TRAINED_N) if count else None
    trie = Trie.from_table(CODES_NL, SIZES)
    return OneRecRecommender(model, trie, num_beams, rescoring=rescoring, new_items=slots)


def best_with_new(items: list[int], k: int, count: int) -> list[int]:
    """By definition: the best new ones up to `count`, the best of the rest, in the order they had."""
    kept = [item for item in items if item in NEW][: min(count, k)]
    kept += [item for item in items if item not in kept][: k - len(kept)]
    return [item for item in items if item in kept]


@pytest.mark.parametrize("rescoring", [0.0, 0.7])
@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize(("k", "count"), [(5, 1), (5, 3), (3, 6), (12, 6)])
def test_a_list_holds_the_best_items_of_which_some_are_new(
    model: OneRec, rescoring: float, exclude_seen: bool, k: int, count: int
) -> None:
    whole = make_recommender(model, 0, rescoring).recommend(HISTORIES, NUM_ITEMS, exclude_seen)
    kept = make_recommender(model, count, rescoring).recommend(HISTORIES, k, exclude_seen)
    for row, history in enumerate(HISTORIES):
        ranked = [item for item in whole.items_BK[row].tolist() if item >= 0]
        found = kept.items_BK[row].tolist()
        assert found == best_with_new(ranked, k, count)
        assert len(set(found)) == k
        assert not exclude_seen or not set(found) & set(history.tolist())
        assert (np.diff(kept.scores_BK[row]) <= 0).all()
    if not rescoring:
        scores = [dict(zip(*row, strict=True)) for row in zip(whole.items_BK, whole.scores_BK, strict=True)]
        expected = [[scores[row][item] for item in items] for row, items in enumerate(kept.items_BK)]
        np.testing.assert_allclose(kept.scores_BK, expected, rtol=1e-5)


def test_a_narrow_search_reaches_the_best_new_items_all_the_same(model: OneRec) -> None:
    plain = make_recommender(model, 0, num_beams=4).recommend(HISTORIES, 4, False).items_BK
    kept = make_recommender(model, 2, num_beams=4).recommend(HISTORIES, 4, False).items_BK
    assert (np.isin(plain, NEW).sum(axis=1) < 2).any()
    assert (np.isin(kept, NEW).sum(axis=1) >= 2).all()


def test_exact_search_keeps_the_same_places_and_counts_both_descents(model: OneRec) -> None:
    recommender = make_recommender(model, 3, num_beams=5)
    context = recommender.encode(HISTORIES)
    found, expansions_B = recommender.search_exactly(context, 5)
    wide = make_recommender(model, 3).search(context, 5)
    np.testing.assert_array_equal(found.items_BK, wide.items_BK)
    assert (expansions_B > make_recommender(model, 0, num_beams=5).search_exactly(context, 5)[1]).all()


def test_a_list_with_enough_new_items_stays_and_so_does_one_without_places(model: OneRec) -> None:
    context = make_recommender(model, 0).encode(HISTORIES)
    plain, one = (make_recommender(model, count, num_beams=12).search(context, 12) for count in (0, 1))
    rows = np.isin(plain.items_BK, NEW).any(axis=1)
    assert rows.any()
    np.testing.assert_array_equal(one.items_BK[rows], plain.items_BK[rows])
    np.testing.assert_array_equal(one.scores_BK[rows], plain.scores_BK[rows])


def test_new_items_that_are_taken_out_or_seen_leave_their_places_to_others(model: OneRec) -> None:
    recommender = make_recommender(model, 6, num_beams=12)
    context = recommender.encode(HISTORIES[:1])
    assert set(NEW) <= set(recommender.search(context, 12).items_BK[0].tolist())
    fewer = copy.copy(recommender)
    fewer.trie = recommender.trie.remove(np.array([8, 39]))
    left = fewer.search(context, 12, [np.array([30])]).items_BK[0].tolist()
    assert set(left) & set(NEW) == {3, 9, 21}
    assert len(set(left) - {-1}) == 12
    none = copy.copy(recommender)
    none.trie = recommender.trie.remove(np.array(NEW))
    old = make_recommender(model, 0, num_beams=12).search(context, 12, [np.array(NEW)])
    np.testing.assert_array_equal(none.search(context, 12).items_BK, old.items_BK)


def test_searches_are_joined_by_score_and_places_without_an_item_stay_at_the_end() -> None:
    found = BeamResult(torch.tensor([[7, 3, -1]]), torch.tensor([[-1.0, -2.0, float("-inf")]]))
    other = BeamResult(torch.tensor([[9, 3, 8]]), torch.tensor([[-1.0, -2.0, -1.5]]))
    both = join(found, other)
    assert both.items_BK.tolist() == [[7, 9, 8, 3, -1, -1]]
    assert both.scores_BK[0, :4].tolist() == [-1.0, -1.0, -1.5, -2.0]
    short = NewItemSlots(1, TRAINED_N).keep(both, 5)
    assert short.items_BK.tolist() == [[7, 9, 8, 3, -1]]
    assert short.scores_BK[0, 4] == float("-inf")


def test_which_items_are_not_new_is_kept_in_a_file(tmp_path: Path) -> None:
    slots = NewItemSlots.of(2, np.array([1, 0, 5]))
    assert slots is not None
    slots.save(tmp_path)
    loaded = NewItemSlots.load(3, tmp_path)
    assert loaded is not None
    assert (loaded.count, loaded.trained_N.tolist()) == (3, [True, False, True])
    assert NewItemSlots.of(0, np.array([1])) is None
    assert NewItemSlots.load(0, tmp_path / "missing") is None
