"""Beam search over the catalogue: the only decoder, for evaluation, rollouts and serving alike.

Shapes: B requests, W beams of this level, V beams of the next, C candidates of a request, K codes of a level, L levels.

An item's score is the sum of the log-probabilities of its L codes, over all codes of each level: neither renormalised
over those that exist nor divided by a length. The trie is consulted inside every step, so a beam can only ever stand
for a prefix of an allowed item; one without allowed children dies. Every living prefix leads to at least one allowed
item, so min(k, allowed items) come back whenever `num_beams >= k`.

Candidates are compared by one integer key of (score, -place in the trie) in `onerec.decoding.continuations`: no two are
equal, so among equal scores the item that sorts first by its codes, then by its rank in the bucket, wins, on every
device and in every batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onerec.decoding.continuations import best_continuations
from onerec.decoding.exclusions import Exclusions
from onerec.decoding.trie import Trie
from onerec.errors import ArtifactError, ConfigError, DataError


class BatchContext(Protocol):
    """What the decoder attends to, held once a request."""

    @property
    def num_requests(self) -> int:
        """B."""


class CodeModel(Protocol):
    """The part of `OneRec` that beam search calls."""

    @property
    def config(self) -> Any:
        """Has `codes_per_level` and `num_items`."""

    def new_cache(self) -> Any:
        """What the beams have read so far: nothing; its `reorder(parents_BW)` lets beams continue others."""

    def decode_step(self, codes_BW: Tensor | None, level: int, context: Any, cache: Any) -> Tensor:
        """Log-probabilities (B, W, K) of `level`."""


@dataclass(frozen=True)
class BeamResult:
    """The best items of each request, best first."""

    items_BK: Tensor  # int64 item indices, -1 where a request has fewer allowed items
    scores_BK: Tensor  # float32 log-probabilities, -inf beside -1

    @classmethod
    def of(cls, items_BW: Tensor, scores_BW: Tensor, k: int) -> Self:
        """The first `k` of each request, filled up where there are fewer."""
        missing = max(0, k - items_BW.size(1))
        items_BK = F.pad(items_BW[:, :k], (0, missing), value=-1)
        return cls(items_BK, F.pad(scores_BW[:, :k], (0, missing), value=float("-inf")))


@dataclass(frozen=True)
class Beams:
    """The living prefixes of one level; those of a request are sorted best first, dead ones last."""

    nodes_BW: Tensor  # int64, 0 where dead
    scores_BW: Tensor  # float32, -inf where dead
    alive_BW: Tensor  # bool


Watch = Callable[[Beams, Tensor, Tensor], None]


@torch.inference_mode()
def beam_search(
    model: CodeModel,
    context: BatchContext,
    trie: Trie,
    num_beams: int,
    k: int,
    excluded: Sequence[np.ndarray] | None = None,
    watch: Watch | None = None,
) -> BeamResult:
    """Find the `k` items of highest log-probability that a beam of `num_beams` prefixes a level reaches.

    Args:
        model: gives the log-probabilities of each level; B follows from `context`.
        context: of B requests, from `model.encode`.
        trie: the catalogue the model's codes stand for, on the model's device.
        num_beams: prefixes kept a level.
        k: items to return, at most `num_beams`.
        excluded: item indices each request may not return, one array a request; None excludes nothing.
        watch: is shown the beams of each level, their last codes (B, W) and their parents (B, W).

    Raises:
        ConfigError: `k` outside 1 to `num_beams`.
        ArtifactError: the trie is of another catalogue.
        DataError: an excluded item outside the catalogue, or not one array a request.
        OneRecError: a log-probability is NaN.
    """
    check_list_length(k, num_beams)
    check_catalogue(model, trie)
    exclusions = find_exclusions(trie, excluded, context.num_requests)
    cache = model.new_cache()
    beams, codes_BW = start_beams(context.num_requests, exclusions, trie), None
    for level in range(trie.num_levels):
        log_probs_BWK = model.decode_step(codes_BW, level, context, cache)
        beams, codes_BW, parents_BW = advance_beams(beams, log_probs_BWK, trie, level, num_beams, exclusions)
        if watch is not None:
            watch(beams, codes_BW, parents_BW)
        if level < trie.num_levels - 1:
            cache.reorder(parents_BW)
    return collect_items(beams, trie, k)


def find_exclusions(trie: Trie, excluded: Sequence[np.ndarray] | None, num_requests: int) -> Exclusions | None:
    if excluded is None:
        return None
    if len(excluded) != num_requests:
        raise DataError(f"excluded: found {len(excluded)} arrays, expected one for each of {num_requests} requests.")
    return Exclusions(trie, excluded)


def start_beams(num_requests: int, exclusions: Exclusions | None, trie: Trie) -> Beams:
    """One empty prefix a request, dead where nothing is allowed."""
    device = trie.item_of_rank.device
    alive_B1 = torch.ones(num_requests, 1, dtype=torch.bool, device=device)
    if exclusions is not None:
        alive_B1 = (exclusions.num_excluded_B < trie.num_items)[:, None]
    return Beams(
        nodes_BW=torch.zeros(num_requests, 1, dtype=torch.int64, device=device),
        scores_BW=torch.zeros(num_requests, 1, device=device),
        alive_BW=alive_B1,
    )


def advance_beams(
    beams: Beams,
    log_probs_BWK: Tensor,
    trie: Trie,
    level: int,
    num_beams: int,
    exclusions: Exclusions | None,
    floor_B: Tensor | None = None,
) -> tuple[Beams, Tensor, Tensor]:
    """Extend every beam by its allowed children and keep the best: the new beams, their codes and their parents.

    Where there is a floor, what scores below it dies, and only as many beams are kept as then live in some request.
    """
    best = best_continuations(
        trie, level, beams.nodes_BW, beams.alive_BW, beams.scores_BW, log_probs_BWK, num_beams, exclusions, floor_B
    )
    return Beams(best.nodes_BV, best.scores_BV, best.alive_BV), best.codes_BV, best.slots_BV


def collect_items(beams: Beams, trie: Trie, k: int) -> BeamResult:
    items_BW = trie.items_of(beams.nodes_BW[:, :k]).masked_fill_(~beams.alive_BW[:, :k], -1)
    return BeamResult.of(items_BW, beams.scores_BW[:, :k], k)


def check_list_length(k: int, num_beams: int) -> None:
    if not 1 <= k <= num_beams:
        raise ConfigError(f"k: found {k}, expected 1 to num_beams = {num_beams}. Search with at least k beams.")


def check_catalogue(model: CodeModel, trie: Trie) -> None:
    found = (trie.num_items, list(trie.codes_per_level))
    expected = (model.config.num_items, list(model.config.codes_per_level))
    if found != expected:
        raise ArtifactError(
            f"trie: found {found[0]} items with codes {found[1]} a level, the model was built for {expected[0]} items "
            f"with {expected[1]}. Build the trie from the model's own ID table."
        )
