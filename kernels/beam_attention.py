"""Attention of a request's beams to its context, whose keys and values are never copied to them.

Legend: B requests, G heads of keys, Q queries of a head (beams, times the heads that share a key), S keys, d head
width.
"""

import torch
from torch import Tensor

from kernels.attention import attend
from kernels.backends import Backend, takes_kernel
from kernels.reference import attention


def attend_beams(
    queries_BGQd: Tensor,
    keys_BGSd: Tensor,
    values_BGSd: Tensor,
    visible: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Scaled dot-product attention (B, G, Q, d), where all queries of a request see the same keys, by the fastest way.

    On CUDA, without derivatives, by the Triton kernel that loads a key once for all beams; on a CPU a single query, as
    at the first level, by plain products; otherwise as `kernels.attention.attend`, to which a mask that differs between
    queries goes as well.

    Args:
        visible: bool, broadcast to (B, G, Q, S): the keys a query may see.
        backend: `flash` takes flash-attn (half precision, no mask); a named one that cannot run is an error.

    Raises:
        ImportError: a backend is asked for whose package is not installed.
    """
    tensors = queries_BGQd, keys_BGSd, values_BGSd
    if backend == "flash" and takes_kernel(backend, "flash", *tensors):
        return _by_flash_attn(*tensors)
    wants_gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    per_request = visible is None or visible.shape[1:3] == (1, 1)
    if not wants_gradients and per_request and takes_kernel(backend, "triton", *tensors):
        from kernels.triton_beam_attention import beam_attention

        visible_BS = None if visible is None else visible[:, 0, 0].expand(len(queries_BGQd), -1)
        return beam_attention(*tensors, visible_BS)
    if queries_BGQd.size(2) == 1 and queries_BGQd.device.type == "cpu":
        return attention(*tensors, visible)  # in half the time of the fused kernel (bfloat16), or four fifths (float32)
    return attend(*tensors, visible)


def _by_flash_attn(queries_BGQd: Tensor, keys_BGSd: Tensor, values_BGSd: Tensor) -> Tensor:
    """Beams as further queries of one sequence, none before another."""
    from flash_attn import flash_attn_func

    mixed_BQGd: Tensor = flash_attn_func(*(x.transpose(1, 2) for x in (queries_BGQd, keys_BGSd, values_BGSd)))
    return mixed_BQGd.transpose(1, 2)
