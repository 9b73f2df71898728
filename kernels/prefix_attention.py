"""Attention of beams to the few tokens of their own prefixes.

With one query and at most a handful of keys a row, fused attention kernels spend their time on setting up: on two cores
of a CPU they took two (float32) to nine (bfloat16) times as long as the few passes below. The first token (BOS) is
shared by all beams of a request, so its keys and values are never copied to them.

Legend: B requests, W beams, H heads, d head width, I = H * d.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def attend_to_prefix(queries_BWI: Tensor, first_BJ: Tensor, others_BWJ: Sequence[Tensor], num_heads: int) -> Tensor:
    """Scaled dot-product attention (B, W, I) of each beam to the tokens it consists of.

    Args:
        first_BJ: keys and values, J = 2 * I numbers, of the token that all beams of a request begin with.
        others_BWJ: keys and values of each beam's further tokens, one tensor a token.
        num_heads: H; a head's numbers stand side by side.
    """
    inner = queries_BWI.size(-1)
    head_dim = inner // num_heads
    heads_HI = torch.eye(num_heads, dtype=queries_BWI.dtype, device=queries_BWI.device).repeat_interleave(head_dim, 1)
    scaled_sum_IH = heads_HI.T * head_dim**-0.5
    first_keys_BI, first_values_BI = first_BJ.split(inner, dim=-1)
    scores = [torch.bmm(queries_BWI, first_keys_BI[:, :, None] * scaled_sum_IH)]
    scores += [(queries_BWI * keys_values[..., :inner]) @ scaled_sum_IH for keys_values in others_BWJ]
    shares_lBWH = torch.stack(scores).softmax(dim=0)
    mixed_BWI = torch.bmm(shares_lBWH[0], first_values_BI[:, None, :] * heads_HI)
    mixed_BWHd = mixed_BWI.unflatten(-1, (num_heads, -1))
    for shares_BWH, keys_values in zip(shares_lBWH[1:], others_BWJ, strict=True):
        mixed_BWHd.addcmul_(shares_BWH[..., None], keys_values[..., inner:].unflatten(-1, (num_heads, -1)))
    return mixed_BWI
