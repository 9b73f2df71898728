"""The search for lists against all lists there are, and against the search for items."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from onerec.decoding.beam import beam_search
from onerec.decoding.sessions import ListRecommender, search_lists
from onerec.decoding.trie import Trie
from onerec.errors import ConfigError
from onerec.model.configuration import OneRecConfig
from onerec.model.lists import ListPass
from onerec.model.onerec import OneRec

SIZES = (3, 2, 2)
# One item alone under its first code, so that a list that holds it has a dead end there; two that share all codes.
CODES_NL = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 0, 0], [1, 0, 0], [2, 1, 0]])
TRIE = Trie.from_table(CODES_NL, SIZES, np.array([0, 0, 0, 0, 1, 0]))
NUM_ITEMS = len(CODES_NL)
HISTORIES = [np.array([3, 1, 3, 0]), np.array([], dtype=np.int64), np.array([5])]
SHAPES: list[dict[str, Any]] = [
    {},
    {"context": "bidirectional", "prefix_vectors": True, "repeat_bias": True},
    {"context": "lazy", "num_experts": 3},
    {"bos_reads_context": True, "prefix_vectors": True, "repeat_bias": True, "item_head_weight": 1.0},
]


def make_model(session_items: int, **shape: Any) -> OneRec:
    """Far from its start, so that lists differ in score and their order matters."""
    torch.manual_seed(0)
    config = OneRecConfig(SIZES, NUM_ITEMS, session_items=session_items, d_model=16, num_heads=2, d_ff=32, **shape)
    model = OneRec(config).eval()
    model.set_codes(CODES_NL, "hash-of-the-table")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def recommender_of(model: OneRec, num_beams: int = 200) -> ListRecommender:
    return ListRecommender(model, TRIE, num_beams)


@torch.no_grad()
def score_all(model: OneRec, history: np.ndarray, lists: list[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
    """Log-probability of each list by teacher forcing, no step of the search."""
    inputs_1S = torch.from_numpy(history)[None].long() + 1 if len(history) else torch.zeros(1, 1, dtype=torch.long)
    inputs_BS, lists_Bm = inputs_1S.expand(len(lists), -1), torch.tensor(lists)
    mask_BS = model.encoder.real_positions(inputs_BS != 0, None)
    states_BSD = model.encoder(inputs_BS).last_hidden_state
    batch = ListPass(model, states_BSD, (inputs_BS - 1).clamp(min=0), mask_BS, lists_Bm)
    steps_M1L = batch.code_log_probs(batch.hidden(lists_Bm)[:, None], lists_Bm.view(-1, 1))
    return dict(zip(lists, steps_M1L.view(len(lists), -1).sum(dim=1).tolist(), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("excluded", [None, [np.array([5]), np.array([0, 1]), np.array([2, 3, 3])]])
def test_enough_beams_find_the_best_of_all_lists(shape: dict[str, Any], excluded: list[np.ndarray] | None) -> None:
    model = make_model(3, **shape)
    context = recommender_of(model).encode(HISTORIES)
    found = search_lists(model, context, TRIE, num_beams=200, k=130, excluded=excluded)
    for row, history in enumerate(HISTORIES):
        allowed = [item for item in range(NUM_ITEMS) if excluded is None or item not in excluded[row]]
        scores = score_all(model, history, list(itertools.permutations(allowed, 3)))
        best = sorted(scores, key=scores.__getitem__, reverse=True)[:130]
        lists = [tuple(items) for items in found.items_BKm[row, : len(best)].tolist()]
        assert len(set(lists)) == len(best)
        expected = torch.tensor([scores[items] for items in best])
        torch.testing.assert_close(found.scores_BK[row, : len(best)], expected, rtol=1e-4, atol=1e-4)
        told = torch.tensor([scores[items] for items in lists])
        torch.testing.assert_close(told, expected, rtol=1e-4, atol=1e-4)
        assert found.items_BKm[row, len(best) :].eq(-1).all()
        assert found.scores_BK[row, len(best) :].isneginf().all()


@pytest.mark.parametrize("shape", SHAPES)
def test_lists_of_one_item_are_what_the_search_for_items_finds(shape: dict[str, Any]) -> None:
    lists, items = make_model(1, **shape), make_model(0, **shape)
    assert list(lists.state_dict()) == list(items.state_dict())
    items.load_state_dict(lists.state_dict())
    excluded = [np.array([3]), np.array([], dtype=np.int64), np.array([5, 0])]
    for model in (lists, items):
        context = recommender_of(model).encode(HISTORIES)
        plain = beam_search(model, context, TRIE, 4, 4, excluded)
        found = search_lists(lists, context, TRIE, num_beams=4, k=4, excluded=excluded)
        torch.testing.assert_close(found.items_BKm[..., 0], plain.items_BK, rtol=0, atol=0)
        torch.testing.assert_close(found.scores_BK, plain.scores_BK, rtol=0, atol=0)


def test_the_first_items_of_lists_are_found_as_single_ones() -> None:
    model = make_model(3)
    context = recommender_of(model).encode(HISTORIES)
    plain = beam_search(model, context, TRIE, 5, 5)
    found = search_lists(model, context, TRIE, num_beams=5, k=5, num_items=1)
    torch.testing.assert_close(found.items_BKm[..., 0], plain.items_BK, rtol=0, atol=0)
    torch.testing.assert_close(found.scores_BK, plain.scores_BK, rtol=0, atol=0)


@pytest.mark.parametrize("num_beams", [1, 2, 7])
def test_few_beams_fill_every_list_with_different_allowed_items(num_beams: int) -> None:
    model = make_model(3)
    context = recommender_of(model).encode(HISTORIES)
    excluded = [np.array([0, 1, 2]), np.array([2, 3, 4]), np.array([5])]
    found = search_lists(model, context, TRIE, num_beams, num_beams, excluded=excluded)
    for row, items_Km in enumerate(found.items_BKm.tolist()):
        lists = [items for items in items_Km if items[0] >= 0]
        assert len({tuple(items) for items in lists}) == len(lists) == min(num_beams, len(lists))
        assert lists
        for items, value in zip(lists, found.scores_BK[row].tolist(), strict=False):
            assert len(set(items)) == 3
            assert not set(items) & set(excluded[row].tolist())
            assert score_all(model, HISTORIES[row], [tuple(items)])[tuple(items)] == pytest.approx(value, abs=1e-4)
    assert found.scores_BK.diff(dim=1).nan_to_num(nan=-1.0).le(0).all()


def test_a_request_with_too_few_allowed_items_has_no_list() -> None:
    model = make_model(3)
    context = recommender_of(model).encode(HISTORIES)
    excluded = [np.arange(NUM_ITEMS), np.array([0, 1, 2, 3]), np.array([0])]
    found = search_lists(model, context, TRIE, num_beams=8, k=2, excluded=excluded)
    assert found.items_BKm[:2].eq(-1).all()
    assert found.scores_BK[:2].isneginf().all()
    assert found.items_BKm[2].ge(0).all()


def test_a_batch_is_searched_as_its_requests_alone() -> None:
    recommender = recommender_of(make_model(3, prefix_vectors=True, repeat_bias=True), num_beams=6)
    together = recommender.recommend_lists(HISTORIES, exclude_seen=True)
    for row, history in enumerate(HISTORIES):
        alone = recommender.recommend_lists([history], exclude_seen=True)
        np.testing.assert_array_equal(together[0][row], alone[0][0])
        np.testing.assert_allclose(together[1][row], alone[1][0], rtol=1e-5)
        assert not set(together[0][row].tolist()) & set(history.tolist())
    assert recommender.recommend_lists(HISTORIES, exclude_seen=False, num_items=2)[0].shape == (3, 2)


@pytest.mark.parametrize(
    ("session_items", "arguments", "reason"),
    [
        (0, {"k": 1}, "found a model of single items"),
        (2, {"k": 1, "num_items": 3}, "lists of 3 items: expected 1 to 2"),
        (2, {"k": 1, "num_items": 0}, "lists of 0 items"),
        (2, {"k": 5}, "k: found 5, expected 1 to num_beams = 4"),
    ],
)
def test_what_cannot_be_searched_is_refused(session_items: int, arguments: dict[str, int], reason: str) -> None:
    model = make_model(session_items)
    with pytest.raises(ConfigError, match=reason):
        search_lists(model, recommender_of(model).encode(HISTORIES), TRIE, num_beams=4, **arguments)
