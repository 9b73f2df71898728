"""Exact search: the provably best k items of every request.

Log-probabilities only fall along a path of codes, so a prefix bounds every item below it. A beam search finds k items
first; the score of its k-th is a floor under the true k best, and a second descent keeps every prefix at or above the
floor, however many there are. Nothing that could belong to the k best is ever dropped.

Among equal scores the order is beam search's. Shapes: B requests, W prefixes of a level, k items of a request.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onerec.decoding.beam import (
    BatchContext,
    Beams,
    CodeModel,
    advance_beams,
    beam_search,
    collect_items,
    find_exclusions,
    start_beams,
)
from onerec.decoding.exclusions import Exclusions
from onerec.decoding.trie import Trie
from onerec.errors import ConfigError


@dataclass(frozen=True)
class ExactResult:
    """The best items of each request, best first, and what it took to prove it."""

    items_BK: Tensor  # int64 item indices, -1 where a request has fewer allowed items
    scores_BK: Tensor  # float32 log-probabilities, -inf beside -1
    num_expansions_B: Tensor  # int64, prefixes that the decoder read in both descents


@torch.inference_mode()
def exact_search(
    model: CodeModel,
    context: BatchContext,
    trie: Trie,
    num_beams: int,
    k: int,
    excluded: Sequence[np.ndarray] | None = None,
    max_prefixes: int = 2**17,
    rounding: float = 1e-3,
) -> ExactResult:
    """Find the `k` items of highest log-probability.

    Args:
        model: gives the log-probabilities of each level; B follows from `context`.
        context: of B requests, from `model.encode`.
        trie: the catalogue the model's codes stand for, on the model's device.
        num_beams: width of the beam search that sets the floor: wider ones raise it and spare the second descent work.
        k: items to return, at most `num_beams`.
        excluded: item indices each request may not return, one array a request; None excludes nothing.
        max_prefixes: of all requests together that a level may keep.
        rounding: by how much a score may differ between batches of other shapes; the floor is lowered by it.

    Raises:
        ConfigError: more prefixes than `max_prefixes` could hold one of the k best; or as beam search.
        ArtifactError, DataError, OneRecError: as beam search.
    """
    guess = beam_search(model, context, trie, num_beams, k, excluded)
    floor_B = guess.scores_BK[:, -1] - rounding  # -inf, so no floor, where fewer than k items are allowed
    exclusions = find_exclusions(trie, excluded, context.num_requests)
    widest = max(1, max_prefixes // context.num_requests)
    leaves, num_read_B = _keep_all_above(floor_B, model, context, trie, exclusions, widest)
    found = collect_items(leaves, trie, k)
    guessed_B = _count_expansions(num_beams, trie, context.num_requests).to(floor_B.device)
    return ExactResult(found.items_BK, found.scores_BK, guessed_B + num_read_B)


def _keep_all_above(
    floor_B: Tensor, model: CodeModel, context: BatchContext, trie: Trie, exclusions: Exclusions | None, widest: int
) -> tuple[Beams, Tensor]:
    """The second descent: every leaf at or above the floor, and how many prefixes were read on the way (B,)."""
    cache = model.new_cache()
    beams, codes_BW = start_beams(context.num_requests, exclusions, trie), None
    num_read_B = torch.zeros_like(floor_B, dtype=torch.int64)
    for level in range(trie.num_levels):
        num_read_B += beams.alive_BW.sum(dim=1)
        log_probs_BWK = model.decode_step(codes_BW, level, context, cache)
        beams, codes_BW, parents_BW = advance_beams(beams, log_probs_BWK, trie, level, widest + 1, exclusions, floor_B)
        if level < trie.num_levels - 1:
            _check_width(beams.nodes_BW.size(1), widest, level)
            cache.reorder(parents_BW)
    return beams, num_read_B


def _count_expansions(num_beams: int, trie: Trie, num_requests: int) -> Tensor:
    """Prefixes that a beam search reads of each request: the root, then as many as there are and fit."""
    wide = sum(min(num_beams, trie.num_nodes(level)) for level in range(trie.num_levels - 1))
    return torch.full((num_requests,), 1 + wide)


def _check_width(found: int, widest: int, level: int) -> None:
    if found > widest:
        raise ConfigError(
            f"exact search: found more than {widest} prefixes of {level + 1} codes for one request that could hold one "
            "of its best items. The model hardly prefers any: search fewer requests at once, allow more prefixes, or "
            "take beam search."
        )
