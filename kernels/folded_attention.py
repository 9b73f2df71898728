"""Attention of many beams to one short context, with the projections folded into its keys and values.

A beam's score of a position is its state times the query matrix times the position's key. The last two do not depend on
the beam: multiplied once a request, they spare every beam its projections, and one product over the model's width gives
the scores of all heads and positions. (DeepSeek-V2 folds matrices likewise, arXiv 2405.04434, section 2.1.2, to cache
less.) It pays while there are many beams a request and few positions: 2 S H D multiplications a beam stand against
2 I (D + S).

Legend: B requests, W beams, D model width, H heads, d head width, I = H * d, S positions, s = H * S.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FoldedContext:
    """A context as one layer's beams read it."""

    keys_BsD: Tensor
    values_BsD: Tensor
    num_heads: int


def pays_to_fold(num_beams: int, num_positions: int, width: int, inner: int, num_heads: int) -> bool:
    """Whether folding saves multiplications within one step of the beams."""
    plain = 2 * inner * (width + num_positions)
    folded = 2 * num_positions * num_heads * width
    return num_beams * (plain - folded) > 2 * num_positions * inner * width


def fold_context(keys_BHSd: Tensor, values_BHSd: Tensor, query_ID: Tensor, output_DI: Tensor) -> FoldedContext:
    """Multiply keys by the weights of the query projection, values by those of the output projection.

    Args:
        query_ID: weights that make queries of a state; a head's numbers stand side by side.
        output_DI: weights that make a state of the heads' mixtures.
    """
    num_heads, head_dim = keys_BHSd.size(1), keys_BHSd.size(3)
    query_HdD = query_ID.unflatten(0, (num_heads, -1)) * head_dim**-0.5
    output_DHd = output_DI.unflatten(1, (num_heads, -1))
    keys_BHSD = torch.einsum("BHSd,HdD->BHSD", keys_BHSd, query_HdD)
    values_BHSD = torch.einsum("BHSd,DHd->BHSD", values_BHSd, output_DHd)
    return FoldedContext(keys_BHSD.flatten(1, 2).contiguous(), values_BHSD.flatten(1, 2).contiguous(), num_heads)


def attend_folded(states_BWD: Tensor, context: FoldedContext, visible_B11S: Tensor | None = None) -> Tensor:
    """What scaled dot-product attention adds to each state (B, W, D), its projections included.

    Args:
        visible_B11S: bool, the positions that a request's beams may see; None for all.
    """
    scores_BWHS = torch.bmm(states_BWD, context.keys_BsD.mT).unflatten(-1, (context.num_heads, -1)).float()
    if visible_B11S is not None:
        scores_BWHS = scores_BWHS.masked_fill_(~visible_B11S, float("-inf"))
    shares_BWs = scores_BWHS.softmax(dim=-1).to(states_BWD.dtype).flatten(-2)
    return torch.bmm(shares_BWs, context.values_BsD)
