"""Attention of beams to the few tokens of their own prefixes.

With one query and at most a handful of keys a row, fused attention kernels spend their time on setting up: on two cores
of a CPU they took two (float32) to nine (bfloat16) times as long as the few passes below. The first token (BOS) is
shared by all beams of a request, so its keys and values are never copied to them.

Legend: B requests, W beams, H heads, d head width, I = H * d.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]


def attend_to_prefix(
    queries_BWI: Tensor, first_BI: KeysValues, others_BWI: Sequence[KeysValues], num_heads: int
) -> Tensor:
    """Scaled dot-product attention (B, W, I) of each beam to the tokens it consists of.

    Args:
        first_BI: keys and values of the token that all beams of a request begin with.
        others_BWI: keys and values of each beam's further tokens, a pair a token.
        num_heads: H; a head's numbers stand side by side.
    """
    head_dim = queries_BWI.size(-1) // num_heads
    first_keys_BI, first_values_BI = first_BI
    keys = [first_keys_BI[:, None], *(keys_BWI for keys_BWI, _ in others_BWI)]
    scores = [(queries_BWI * keys_BWI).unflatten(-1, (num_heads, -1)).sum(dim=-1) for keys_BWI in keys]
    shares_lBWH = torch.stack(scores).mul_(head_dim**-0.5).softmax(dim=0)
    heads_HI = torch.eye(num_heads, dtype=queries_BWI.dtype, device=queries_BWI.device).repeat_interleave(head_dim, 1)
    mixed_BWI = torch.bmm(shares_lBWH[0], first_values_BI[:, None, :] * heads_HI)
    mixed_BWHd = mixed_BWI.unflatten(-1, (num_heads, -1))
    for shares_BWH, (_, values_BWI) in zip(shares_lBWH[1:], others_BWI, strict=True):
        mixed_BWHd.addcmul_(shares_BWH[..., None], values_BWI.unflatten(-1, (num_heads, -1)))
    return mixed_BWI
