"""Log-probabilities of given items under a model, with gradients: all samples of a request share one context.

Shapes: B requests, G items of a request, W prefixes that a level extends (1 at first, then G), C candidates of a
request, K codes of a level, L levels.

Scores agree with what `onerec.decoding.sampling` reports for its draws: `score_items` with `log_probs_BG` of
constrained draws at the same temperature and exclusions, `score_codes` with that of free ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onerec.decoding.exclusions import Exclusions
from onerec.decoding.sampling import logsumexp_by_slot
from onerec.decoding.trie import Trie
from onerec.model.context import Context
from onerec.model.onerec import OneRec


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of items, and the entropy of the choices on their way (no gradient)."""

    log_probs_BG: Tensor
    entropies_BG: Tensor  # nats, summed over levels


def score_items(
    model: OneRec,
    context: Context,
    items_BG: Tensor,
    trie: Trie,
    temperature: float = 1.0,
    excluded: Sequence[np.ndarray] | None = None,
) -> Scores:
    """Score items under the distribution constrained to the catalogue, less each request's `excluded` items.

    None of the scored items may be excluded itself: it would have probability 0.
    """
    codes_BGL = model.codes_of(items_BG)
    exclusions = None if excluded is None else Exclusions(trie, excluded)
    logits = model.score_levels(context, codes_BGL)
    log_probs_BG = torch.zeros(items_BG.shape, device=items_BG.device)
    entropies_BG = torch.zeros_like(log_probs_BG)
    for level, (nodes_BW, logits_BWK) in enumerate(zip(_paths(trie, items_BG), logits, strict=True)):
        scores_BWK = logits_BWK / temperature
        totals_BW, entropies_BW = _constrained_totals(scores_BWK, trie, level, nodes_BW, exclusions)
        own_BG = scores_BWK.expand(-1, items_BG.size(1), -1).gather(2, codes_BGL[..., level, None])[..., 0]
        log_probs_BG = log_probs_BG + own_BG - totals_BW
        entropies_BG = entropies_BG + entropies_BW
    return Scores(log_probs_BG, entropies_BG)


def score_codes(model: OneRec, context: Context, codes_BGL: Tensor, temperature: float = 1.0) -> Scores:
    """Score code tuples under the distribution over all codes, whether or not an item has them."""
    log_probs_BG = torch.zeros(codes_BGL.shape[:2], device=codes_BGL.device)
    entropies_BG = torch.zeros_like(log_probs_BG)
    for level, logits_BWK in enumerate(model.score_levels(context, codes_BGL)):
        log_probs_BWK = (logits_BWK / temperature).log_softmax(dim=-1)
        expanded_BGK = log_probs_BWK.expand(-1, codes_BGL.size(1), -1)
        log_probs_BG = log_probs_BG + expanded_BGK.gather(2, codes_BGL[..., level, None])[..., 0]
        entropies_BG = entropies_BG - (log_probs_BWK.exp() * log_probs_BWK).sum(dim=-1).detach()
    return Scores(log_probs_BG, entropies_BG)


def legal_masses(model: OneRec, context: Context, items_BG: Tensor, trie: Trie) -> Tensor:
    """Log-probability (B, G) that codes chosen freely at each step of the items would all be legal."""
    masses_BG = torch.zeros(items_BG.shape, device=items_BG.device)
    logits = model.score_levels(context, model.codes_of(items_BG))
    for level, (nodes_BW, logits_BWK) in enumerate(zip(_paths(trie, items_BG), logits, strict=True)):
        legal_BW, _ = _constrained_totals(logits_BWK, trie, level, nodes_BW, None)
        masses_BG = masses_BG + legal_BW - logits_BWK.logsumexp(dim=-1)
    return masses_BG


def _paths(trie: Trie, items_BG: Tensor) -> list[Tensor]:
    """For each level the nodes that its codes extend: the root (B, 1), then each item's own (B, G)."""
    nodes_BG = trie.ranks_of(items_BG)
    above: list[Tensor] = []
    for level in range(trie.num_levels - 1, 0, -1):
        nodes_BG = trie.parents(level, nodes_BG)
        above.append(nodes_BG)
    return [torch.zeros_like(items_BG[:, :1]), *reversed(above)]


def _constrained_totals(
    scores_BWK: Tensor, trie: Trie, level: int, nodes_BW: Tensor, exclusions: Exclusions | None
) -> tuple[Tensor, Tensor]:
    """Log of the summed exponentials of each node's allowed children, and the entropy of choosing among them."""
    num_slots = nodes_BW.size(1)
    children = trie.children(level, nodes_BW, torch.ones_like(nodes_BW, dtype=torch.bool))
    allowed_BC = children.present_BC
    if exclusions is not None and (dead_BC := exclusions.contains(level, children.nodes_BC)) is not None:
        allowed_BC = allowed_BC & ~dead_BC
    flat_BC = children.slots_BC * scores_BWK.size(2) + children.codes_BC
    scores_BC = scores_BWK.flatten(1).gather(1, flat_BC).masked_fill(~allowed_BC, float("-inf"))
    totals_BW = logsumexp_by_slot(scores_BC, children.slots_BC, num_slots)
    with torch.no_grad():
        log_probs_BC = (scores_BC - totals_BW.gather(1, children.slots_BC)).masked_fill(~allowed_BC, 0.0)
        surprise_BC = -(log_probs_BC.exp() * log_probs_BC)
        entropies_BW = torch.zeros_like(totals_BW).scatter_add(1, children.slots_BC, surprise_BC)
    return totals_BW, entropies_BW
