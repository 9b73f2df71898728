"""What the heads propose beside a search: against every item scored by decoder and heads, and in all its company."""

import numpy as np
import pytest
import torch

from onerec.config import DecodingSettings
from onerec.decoding.beam import beam_search
from onerec.decoding.dense_candidates import score_items
from onerec.decoding.new_items import NewItemSlots
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.trie import Trie
from onerec.errors import ConfigError
from onerec.model.onerec import OneRec
from tests.decoding.test_rescoring import (
    CODES_NL,
    HISTORIES,
    NUM_ITEMS,
    SIZES,
    make_model,
    opinions_of_all_items,
    opinions_of_ids,
)

NUM_BEAMS, COUNT, WEIGHT, K = 4, 5, 0.7, 4
IDS = {"id_head_width": 8}
TREES = {
    "whole": Trie.from_table(CODES_NL, SIZES),
    "restricted": Trie.from_table(CODES_NL, SIZES).restrict(CODES_NL[:, 2] < 2),
    "changed": Trie.from_table(CODES_NL, SIZES).remove(np.arange(0, NUM_ITEMS, 3)),
}


def make_recommender(model: OneRec, trie: Trie, count: int, slots: NewItemSlots | None = None) -> OneRecRecommender:
    return OneRecRecommender(model, trie, NUM_BEAMS, rescoring=WEIGHT, new_items=slots, dense_candidates=count)


def expected_items(model: OneRec, trie: Trie, history: np.ndarray, exclude_seen: bool) -> list[int]:
    """The order by scores of every item on its own: of beams and of what the heads like best of the rest."""
    everything = Trie.from_table(CODES_NL, SIZES)
    context = make_recommender(model, everything, 0).encode([history])
    excluded = [history] if exclude_seen else None
    scored = beam_search(model, context, everything, NUM_ITEMS, NUM_ITEMS)
    codes_N = torch.empty(NUM_ITEMS).scatter_(0, scored.items_BK[0], scored.scores_BK[0])
    opinions = [opinions_of_all_items(model, history), *opinions_of_ids(model, history)]
    beams = beam_search(model, context, trie, NUM_BEAMS, NUM_BEAMS, excluded)
    found = [int(item) for item in beams.items_BK[0] if item >= 0]
    allowed = {item for item in range(NUM_ITEMS) if trie.ranks_of(torch.tensor([item]))[0] >= 0}
    allowed -= set(found) | (set(history.tolist()) if exclude_seen else set())
    missed = sorted(allowed, key=lambda item: -float(sum(opinion_N[item] for opinion_N in opinions)))[:COUNT]
    items = torch.tensor([*found, *missed])
    totals = codes_N[items] + WEIGHT * sum(opinion_N[items].log_softmax(0) for opinion_N in opinions)
    return items[totals.argsort(descending=True)].tolist()


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_id_heads": 2, **IDS}, {"repeat_bias": True, **IDS}])
def test_the_order_is_that_of_all_opinions_of_found_and_missed(
    tree: str, exclude_seen: bool, options: dict[str, object]
) -> None:
    model, changed = make_model(**options), 0
    ranking = make_recommender(model, TREES[tree], COUNT).recommend(HISTORIES, K, exclude_seen)
    plain = make_recommender(model, TREES[tree], 0).recommend(HISTORIES, K, exclude_seen)
    for row, history in enumerate(HISTORIES):
        assert ranking.items_BK[row].tolist() == expected_items(model, TREES[tree], history, exclude_seen)[:K]
        changed += ranking.items_BK[row].tolist() != plain.items_BK[row].tolist()
    assert changed


@torch.inference_mode()
def test_an_item_scores_what_a_beam_gives_it() -> None:
    model, trie = make_model(**IDS), TREES["whole"]
    context = make_recommender(model, trie, 0).encode(HISTORIES)
    everything = beam_search(model, context, trie, NUM_ITEMS, NUM_ITEMS)
    torch.testing.assert_close(score_items(model, context, everything.items_BK), everything.scores_BK)


def test_more_candidates_than_items_are_left() -> None:
    model = make_model()
    history = np.arange(NUM_ITEMS - 3)
    ranking = make_recommender(model, TREES["whole"], NUM_ITEMS + 9).recommend([history], K, exclude_seen=True)
    assert set(ranking.items_BK[0, :3].tolist()) == {NUM_ITEMS - 3, NUM_ITEMS - 2, NUM_ITEMS - 1}
    assert ranking.items_BK[0, 3] == -1
    assert np.isneginf(ranking.scores_BK[0, 3])
    assert np.isfinite(ranking.scores_BK[0, :3]).all()


def test_with_all_items_as_candidates_the_beams_do_not_matter() -> None:
    model = make_model(**IDS)
    narrow = make_recommender(model, TREES["whole"], NUM_ITEMS).recommend(HISTORIES, K, exclude_seen=True)
    context = make_recommender(model, TREES["whole"], NUM_ITEMS).encode(HISTORIES)
    exact, _ = make_recommender(model, TREES["whole"], NUM_ITEMS).search_exactly(context, K, HISTORIES)
    every = OneRecRecommender(model, TREES["whole"], NUM_ITEMS, rescoring=WEIGHT).recommend(HISTORIES, K, True)
    np.testing.assert_array_equal(narrow.items_BK, every.items_BK)
    np.testing.assert_array_equal(exact.items_BK, every.items_BK)
    np.testing.assert_allclose(narrow.scores_BK, every.scores_BK, rtol=1e-5)


def test_places_for_new_items_are_kept() -> None:
    model, slots = make_model(**IDS), NewItemSlots(2, np.arange(NUM_ITEMS) < 30)
    ranking = make_recommender(model, TREES["whole"], COUNT, slots).recommend(HISTORIES, K, False)
    assert ((ranking.items_BK >= 30).sum(axis=1) >= 2).all()


def test_a_recommender_made_anew_has_the_same_options() -> None:
    recommender = make_recommender(make_model(), TREES["whole"], COUNT, NewItemSlots(1, np.ones(9, bool)))
    again = recommender.remade(recommender.model, TREES["changed"])
    assert again.trie is not recommender.trie
    names = ("num_beams", "precision", "source", "rescoring", "new_items", "dense_candidates")
    assert [getattr(again, name) for name in names] == [getattr(recommender, name) for name in names]


def test_candidates_that_nobody_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dense_candidates: found 5 beside decoding\.rescoring 0"):
        OneRecRecommender(make_model(), TREES["whole"], NUM_BEAMS, dense_candidates=COUNT)
    with pytest.raises(ValueError, match="dense_candidates: found 5 beside rescoring 0"):
        DecodingSettings(dense_candidates=COUNT)
