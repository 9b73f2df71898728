"""Beam search over whole lists, by the steps of the search for items: OneRec v1's sessions (arXiv 2502.18965).

A list's score is the sum of the log-probabilities of all its items' codes. The first item is searched for as a single
one; then every list is extended, code by code, by items that it does not hold yet, and the best lists so far are kept.
No list holds an item twice or one that is excluded: as in the search for items, a node all of whose items are taken is
not entered, so that no list ends in nothing while one could go on.

Shapes: B requests, W lists of a request, R = B * W, V continuations of a list, K lists returned, m items of a list,
i of those found so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onerec.data.pathways import History, events_of
from onerec.decoding.beam import (
    Beams,
    advance_beams,
    check_catalogue,
    check_list_length,
    find_exclusions,
    start_beams,
)
from onerec.decoding.continuations import unique_keys
from onerec.decoding.exclusions import Exclusions
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.trie import Trie
from onerec.errors import ConfigError
from onerec.model.context import Context
from onerec.model.decoder import DecoderCache
from onerec.model.lists import list_step
from onerec.model.onerec import OneRec


@dataclass(frozen=True)
class FoundLists:
    """The best lists of each request, best first; -1 and -inf where fewer lists are allowed."""

    items_BKm: Tensor  # int64 item indices
    scores_BK: Tensor  # float32 log-probabilities


@dataclass(frozen=True)
class _Lists:
    """Lists whose last item may be on its way: its node is that of the trie's level just searched."""

    beams: Beams
    items_BWi: Tensor  # whole items, -1 in dead lists


@torch.inference_mode()
def search_lists(
    model: OneRec,
    context: Context,
    trie: Trie,
    num_beams: int,
    k: int,
    num_items: int | None = None,
    excluded: Sequence[np.ndarray] | None = None,
) -> FoundLists:
    """Find the `k` lists of highest log-probability that `num_beams` lists a step reach.

    Args:
        model: of lists.
        num_items: m, at most and by default what the model was trained for.
        excluded: item indices that no list of a request may hold, one array a request.

    Raises:
        ConfigError: a model of single items, lists longer than the model's, or `k` outside 1 to `num_beams`.
        ArtifactError: the trie is of another catalogue.
        DataError: an excluded item outside the catalogue, or not one array a request.
    """
    num_items = model.config.session_items if num_items is None else num_items
    _check_items(model, num_items)
    check_list_length(k, num_beams)
    check_catalogue(model, trie)
    exclusions = find_exclusions(trie, excluded, context.num_requests)
    cache, codes_BW = model.new_cache(), None
    lists = _Lists(start_beams(context.num_requests, exclusions, trie), _no_items(context.num_requests, trie))
    for place in range(num_items):
        for level in range(trie.num_levels):
            log_probs_BWK = list_step(model, codes_BW, place, level, context, cache)
            if place == 0:
                extended = advance_beams(lists.beams, log_probs_BWK, trie, level, num_beams, exclusions)
            else:
                extended = _advance_lists(lists, log_probs_BWK, trie, level, num_beams, excluded)
            lists, codes_BW = _follow(lists, extended, cache)
        lists = _whole(lists, trie)
    return _collect(lists, k)


def _advance_lists(
    lists: _Lists,
    log_probs_BWK: Tensor,
    trie: Trie,
    level: int,
    num_beams: int,
    excluded: Sequence[np.ndarray] | None,
) -> tuple[Beams, Tensor, Tensor]:
    """As `advance_beams`, but every list is a request of its own, with its own items excluded, until the best of all
    lists are chosen."""
    num_requests, num_lists = lists.beams.nodes_BW.shape
    own = Exclusions(trie, _excluded_of_lists(lists, excluded))
    rows = Beams(*(values_BW.reshape(-1, 1) for values_BW in _fields(lists.beams)))
    found, codes_RV, _ = advance_beams(rows, log_probs_BWK.flatten(0, 1)[:, None], trie, level, num_beams, own)

    def of_requests(values_RV: Tensor) -> Tensor:
        return values_RV.reshape(num_requests, -1)

    nodes_BC, scores_BC, alive_BC = (of_requests(values_RV) for values_RV in _fields(found))
    keys_BC = unique_keys(scores_BC, nodes_BC).masked_fill_(~alive_BC, torch.iinfo(torch.int64).min)
    # Stable: lists may end in the same node with the same score, and then the one that was better before comes first.
    order_BV = keys_BC.sort(dim=1, descending=True, stable=True).indices[:, :num_beams]
    order_BV = order_BV[:, : max(1, int(alive_BC.sum(dim=1).max()))]
    chosen = Beams(*(values_BC.gather(1, order_BV) for values_BC in (nodes_BC, scores_BC, alive_BC)))
    return chosen, of_requests(codes_RV).gather(1, order_BV), order_BV // (scores_BC.size(1) // num_lists)


def _excluded_of_lists(lists: _Lists, excluded: Sequence[np.ndarray] | None) -> list[np.ndarray]:
    """What each list may not be extended by: its request's excluded items, and its own."""
    items_BWi = lists.items_BWi.cpu().numpy()
    nothing = np.zeros(0, dtype=np.int64)
    return [
        np.concatenate(
            [nothing if excluded is None else np.asarray(excluded[request], dtype=np.int64), items[items >= 0]]
        )
        for request, items_Wi in enumerate(items_BWi)
        for items in items_Wi
    ]


def _follow(lists: _Lists, extended: tuple[Beams, Tensor, Tensor], cache: DecoderCache) -> tuple[_Lists, Tensor]:
    """The lists that were chosen, with what their parents hold and have read."""
    beams, codes_BV, parents_BV = extended
    cache.reorder(parents_BV)
    items_BVi = lists.items_BWi.gather(1, parents_BV[..., None].expand(-1, -1, lists.items_BWi.size(2)))
    return _Lists(beams, items_BVi), codes_BV


def _whole(lists: _Lists, trie: Trie) -> _Lists:
    """Lists that hold the item they have arrived at, and stand at the root again."""
    beams = lists.beams
    items_BW = trie.items_of(beams.nodes_BW).masked_fill(~beams.alive_BW, -1)
    items_BWi = torch.cat([lists.items_BWi.masked_fill(~beams.alive_BW[..., None], -1), items_BW[..., None]], dim=2)
    return _Lists(Beams(torch.zeros_like(beams.nodes_BW), beams.scores_BW, beams.alive_BW), items_BWi)


def _collect(lists: _Lists, k: int) -> FoundLists:
    num_requests, num_lists, num_items = lists.items_BWi.shape
    device = lists.items_BWi.device
    items_BKm = torch.full((num_requests, k, num_items), -1, dtype=torch.int64, device=device)
    scores_BK = torch.full((num_requests, k), float("-inf"), device=device)
    num_found = min(k, num_lists)
    items_BKm[:, :num_found] = lists.items_BWi[:, :num_found]
    scores_BK[:, :num_found] = lists.beams.scores_BW[:, :num_found]
    return FoundLists(items_BKm, scores_BK)


def _fields(beams: Beams) -> tuple[Tensor, Tensor, Tensor]:
    return beams.nodes_BW, beams.scores_BW, beams.alive_BW


def _no_items(num_requests: int, trie: Trie) -> Tensor:
    return torch.zeros(num_requests, 1, 0, dtype=torch.int64, device=trie.device)


def _check_items(model: OneRec, num_items: int) -> None:
    if not model.config.session_items:
        raise ConfigError("lists: found a model of single items, expected model.session_items of 1 or more. Train one.")
    if not 1 <= num_items <= model.config.session_items:
        raise ConfigError(
            f"lists of {num_items} items: expected 1 to {model.config.session_items}, the model's session_items."
        )


class ListRecommender(OneRecRecommender):
    """A model of lists: recommends whole ones too."""

    @property
    def num_items_of_list(self) -> int:
        """Items m of a list."""
        return int(self.model.config.session_items)

    def recommend_lists(
        self, histories: Sequence[History], exclude_seen: bool, num_items: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best list for each history: its items (B, m) int32, in their order, and its score (B,).

        Raises:
            ConfigError: as `search_lists`.
        """
        length = self.num_items_of_list if num_items is None else num_items
        items_Bm = np.empty((len(histories), length), dtype=np.int32)
        scores_B = np.empty(len(histories), dtype=np.float32)
        for requests in self._like_lengths(histories):
            chosen = [events_of(histories[request]) for request in requests]
            seen = [np.asarray(events.items) for events in chosen] if exclude_seen else None
            found = search_lists(self.model, self.encode(chosen), self.trie, self.num_beams, 1, length, seen)
            items_Bm[requests] = found.items_BKm[:, 0].cpu().numpy()
            scores_B[requests] = found.scores_BK[:, 0].cpu().numpy()
        return items_Bm, scores_B
