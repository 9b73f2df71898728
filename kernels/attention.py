"""Attention by whichever way is fastest where the tensors are.

Legend: B batch, H heads, Q queries, S keys, d head width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.reference import attention


def attend(
    queries_BHQd: Tensor, keys_BHSd: Tensor, values_BHSd: Tensor, visible: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Scaled dot-product attention (B, H, Q, d).

    Args:
        visible: bool, broadcast to (B, H, Q, S): the keys a query may see.
        causal: each query sees the keys up to its own place; Q equals S.
    """
    if _prefers_plain_products(queries_BHQd):
        return attention(queries_BHQd, keys_BHSd, values_BHSd, visible, causal)
    return F.scaled_dot_product_attention(queries_BHQd, keys_BHSd, values_BHSd, attn_mask=visible, is_causal=causal)


def _prefers_plain_products(queries: Tensor) -> bool:
    """In bfloat16, torch's fused CPU kernel takes up to ten times as long for the derivatives of a few rows a head."""
    return queries.device.type == "cpu" and queries.dtype == torch.bfloat16 and queries.requires_grad
