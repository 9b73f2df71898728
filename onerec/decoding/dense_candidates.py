"""Items that the heads over whole items find likely and no beam came to.

A beam dies with its first code, whatever a head thinks of the items below it. So those of the items missed that all
heads together find likeliest get the decoder's score as well, the one that a beam would have, and stand with the items
found in the order of all opinions (`onerec.decoding.rescoring`). The price: every batch reads the vectors of the whole
catalogue, and the decoder the codes of all candidates.

Shapes: B requests, W items found a request, C candidates, N items, E width of item vectors, L levels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from onerec.decoding.beam import BeamResult
from onerec.decoding.exclusions import flat_items
from onerec.decoding.rescoring import opinions_of_all
from onerec.decoding.trie import Trie
from onerec.model.context import Context
from onerec.model.onerec import OneRec


@torch.inference_mode()
def find_missed(
    found: BeamResult,
    model: OneRec,
    context: Context,
    vectors_NE: Tensor,
    trie: Trie,
    count: int,
    excluded: Sequence[np.ndarray] | None = None,
) -> BeamResult:
    """The `count` items that the heads find likeliest among those allowed and not found, with the decoder's scores.

    Args:
        found: by beam search in the same tree.
        vectors_NE: of all items, as the item head reads them.
        excluded: item indices each request may not return, one array a request; None excludes nothing.

    Raises:
        DataError: an excluded item outside the catalogue.
    """
    logits_BN = opinions_of_all(model, context, vectors_NE)
    everything_N = torch.arange(logits_BN.size(1), device=logits_BN.device)
    logits_BN.masked_fill_(trie.ranks_of(everything_N) < 0, float("-inf"))
    # A request with an empty place has all its allowed items already: item 0 in its stead takes nothing away.
    logits_BN.scatter_(1, found.items_BK.clamp(min=0), float("-inf"))
    if excluded is not None:
        logits_BN[flat_items(trie, excluded)] = float("-inf")
    best = logits_BN.topk(min(count, logits_BN.size(1)), dim=1)
    nothing_BC = best.values.isneginf()
    scores_BC = score_items(model, context, best.indices)
    return BeamResult(best.indices.masked_fill(nothing_BC, -1), scores_BC.masked_fill(nothing_BC, float("-inf")))


@torch.inference_mode()
def score_items(model: OneRec, context: Context, items_BC: Tensor) -> Tensor:
    """The log-probabilities (B, C) of items, as beam search adds them up; all their codes are read at once."""
    codes_BCL = model.codes_of(items_BC)
    scores_BC = torch.zeros(items_BC.shape, device=items_BC.device)
    for level, logits in enumerate(model.score_levels(context, codes_BCL)):
        chosen_BC = logits.expand(-1, items_BC.size(1), -1).gather(2, codes_BCL[..., level, None])[..., 0]
        scores_BC = scores_BC + chosen_BC - logits.logsumexp(dim=-1)
    return scores_BC
