"""The item heads' opinions of found items: against their logits over the whole catalogue, and by hand."""

import numpy as np
import pytest
import torch

from onerec.decoding.beam import BeamResult, beam_search
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.rescoring import head_opinions, rescore
from onerec.decoding.trie import Trie
from onerec.errors import ConfigError
from onerec.model.configuration import OneRecConfig
from onerec.model.context import Context
from onerec.model.onerec import OneRec

SIZES, NUM_ITEMS, NUM_BEAMS = (5, 4, 4), 40, 10
CODES_NL = np.stack(np.unravel_index(np.random.default_rng(0).choice(80, NUM_ITEMS, replace=False), SIZES), axis=1)
HISTORIES = [np.array([3, 7, 3]), np.array([], dtype=np.int64), np.array([9, 1, 30, 2, 11, 12, 13, 14])]


def make_model(**shape: object) -> OneRec:
    torch.manual_seed(0)
    shape = {"d_model": 16, "d_ff": 32, "max_history_items": 6, "item_head_weight": 1.0, **shape}
    config = OneRecConfig(codes_per_level=SIZES, num_items=NUM_ITEMS, **shape)
    model = OneRec(config).eval()
    model.set_codes(CODES_NL, "hash")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def make_recommender(model: OneRec, rescoring: float) -> OneRecRecommender:
    return OneRecRecommender(model, Trie.from_table(CODES_NL, SIZES), NUM_BEAMS, rescoring=rescoring)


def by_heads(found: BeamResult, model: OneRec, context: Context, vectors_NE: torch.Tensor) -> BeamResult:
    return rescore(found, [(1.0, logits_BW) for logits_BW in head_opinions(found, model, context, vectors_NE)])


@torch.inference_mode()
def opinions_of_all_items(model: OneRec, history: np.ndarray) -> torch.Tensor:
    """Logits (N,) of the item head as training computes them."""
    recent = torch.from_numpy(history[-model.config.max_history_items :].astype(np.int64))[None]
    context = model.encode(recent, torch.tensor([recent.shape[1]]))
    seen = torch.zeros(NUM_ITEMS, dtype=torch.bool)
    seen[recent[0]] = True
    vectors_NE = model.encoder.item_vectors()
    return model.item_head(context.newest_BD, vectors_NE, torch.arange(NUM_ITEMS)[None], seen[None]).logits()[0]


@torch.inference_mode()
def opinions_of_ids(model: OneRec, history: np.ndarray) -> list[torch.Tensor]:
    """Logits (N,) of each head over ids; the items seen by their own bias."""
    recent, opinions = torch.from_numpy(history[-model.config.max_history_items :].astype(np.int64))[None], []
    for head in model.id_heads:
        state_BE = head.newest_state(recent, torch.tensor([recent.shape[1]]))
        opinions.append(state_BE[0] @ head.network.items.weight.T)
        if head.repeats is not None:
            opinions[-1][recent[0].unique()] += 10 * head.repeats.weight
    return opinions


@pytest.mark.parametrize("repeat_bias", [True, False])
@pytest.mark.parametrize("id_heads", [{}, {"id_head_width": 8}, {"id_head_width": 8, "num_id_heads": 2}])
def test_scores_are_those_of_all_opinions(repeat_bias: bool, id_heads: dict[str, int]) -> None:
    model = make_model(repeat_bias=repeat_bias, **id_heads)
    plain = make_recommender(model, 0.0).recommend(HISTORIES, NUM_BEAMS, exclude_seen=False)
    both = make_recommender(model, 0.7).recommend(HISTORIES, 4, exclude_seen=False)
    changed = 0
    for row, history in enumerate(HISTORIES):
        items_W = torch.from_numpy(plain.items_BK[row]).long()
        opinions_W = opinions_of_all_items(model, history)[items_W].log_softmax(0)
        expected_W = torch.from_numpy(plain.scores_BK[row]) + 0.7 * opinions_W
        for opinions_N in opinions_of_ids(model, history):
            expected_W += 0.7 * opinions_N[items_W].log_softmax(0)
        order_W = expected_W.argsort(descending=True)[:4]
        np.testing.assert_array_equal(both.items_BK[row], items_W[order_W])
        np.testing.assert_allclose(both.scores_BK[row], expected_W[order_W], rtol=1e-5)
        changed += both.items_BK[row].tolist() != plain.items_BK[row, :4].tolist()
    assert changed


def test_places_without_an_item_stay_at_the_end() -> None:
    model = make_model()
    history = np.arange(NUM_ITEMS - 3)
    ranking = make_recommender(model, 1.0).recommend([history], NUM_BEAMS, exclude_seen=True)
    assert set(ranking.items_BK[0, :3].tolist()) == {NUM_ITEMS - 3, NUM_ITEMS - 2, NUM_ITEMS - 1}
    assert ranking.items_BK[0, 3:].tolist() == [-1] * 7
    assert np.isneginf(ranking.scores_BK[0, 3:]).all()
    nothing = make_recommender(model, 1.0).recommend([np.arange(NUM_ITEMS)], 3, exclude_seen=True)
    assert nothing.items_BK.tolist() == [[-1] * 3]
    assert np.isneginf(nothing.scores_BK).all()


@torch.inference_mode()
def test_equal_scores_keep_the_order_of_the_search() -> None:
    model = make_model()
    context = model.encode(torch.tensor([[1, 2]]), torch.tensor([2]))
    found = BeamResult(torch.tensor([[8, 4, 6]]), torch.tensor([[-1.0, -1.0, -1.0]]))
    same_NE = model.encoder.item_vectors()[:1].expand(NUM_ITEMS, -1)
    assert by_heads(found, model, context, same_NE).items_BK.tolist() == [[8, 4, 6]]


@torch.inference_mode()
def test_as_many_beams_as_asked_for_are_rescored() -> None:
    model = make_model()
    recommender = make_recommender(model, 1.0)
    context = recommender.encode(HISTORIES)
    narrow = recommender.search(context, 2, num_beams=5)
    found = beam_search(model, context, recommender.trie, 5, 5)
    expected = by_heads(found, model, context, model.encoder.item_vectors())
    np.testing.assert_array_equal(narrow.items_BK, expected.items_BK[:, :2])
    with pytest.raises(ConfigError, match="num_beams = 5"):
        recommender.search(context, 6, num_beams=5)


def test_exact_search_rescores_the_provably_best() -> None:
    recommender = make_recommender(make_model(), 1.0)
    context = recommender.encode(HISTORIES)
    exact, _ = recommender.search_exactly(context, 4, num_beams=5)
    best = make_recommender(recommender.model, 0.0).search_exactly(context, 5, num_beams=5)[0]
    found = BeamResult(torch.from_numpy(best.items_BK).long(), torch.from_numpy(best.scores_BK))
    expected = by_heads(found, recommender.model, context, recommender.model.encoder.item_vectors())
    np.testing.assert_array_equal(exact.items_BK, expected.items_BK[:, :4])


def test_what_cannot_be_rescored_is_refused() -> None:
    with pytest.raises(ConfigError, match="without an item head"):
        make_recommender(make_model(item_head_weight=0.0), 1.0)
    with pytest.raises(ConfigError, match="lazy context"):
        make_recommender(make_model(context="lazy", num_decoder_layers=1, bos_reads_context=False), 1.0)
