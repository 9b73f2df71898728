"""Attention by whichever way is fastest where the tensors are.

Legend: B batch, H heads, Q queries, S keys, d head width, I = H * d.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.packed_attention import packed_attention
from kernels.reference import attention

_FEW_TOKENS = 4  # up to which packing is faster in float32 too


def attend(
    queries_BHQd: Tensor, keys_BHSd: Tensor, values_BHSd: Tensor, visible: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Scaled dot-product attention (B, H, Q, d).

    Args:
        visible: bool, broadcast to (B, H, Q, S): the keys a query may see.
        causal: each query sees the keys up to its own place; Q equals S.
    """
    tensors = queries_BHQd, keys_BHSd, values_BHSd
    if _fused_kernel_is_slow(queries_BHQd):
        if causal or (visible is not None and visible.dim() != 2):
            return attention(*tensors, visible, causal)
        num_heads = queries_BHQd.size(1)
        mixed_BQI = packed_attention(num_heads, visible, *(rows.transpose(1, 2).flatten(2) for rows in tensors))
        return mixed_BQI.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(*tensors, attn_mask=visible, is_causal=causal)


def attend_within_rows(projected: Tensor, num_heads: int) -> Tensor:
    """Causal attention (B, Q, I) among queries, keys and values that lie side by side in (B, Q, 3 * I)."""
    size = projected.size(1)
    few = size <= _FEW_TOKENS and projected.device.type == "cpu" and projected.requires_grad
    if few or _fused_kernel_is_slow(projected):
        return packed_attention(num_heads, torch.ones(size, size, dtype=torch.bool).tril(), projected)
    queries, keys, values = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=-1))
    return attend(queries, keys, values, causal=True).transpose(1, 2).flatten(-2)


def _fused_kernel_is_slow(queries: Tensor) -> bool:
    """In bfloat16, torch's fused CPU kernel takes up to ten times as long for the derivatives of a few rows a head."""
    return queries.device.type == "cpu" and queries.dtype == torch.bfloat16 and queries.requires_grad
