"""Root-mean-square norm in half the passes over memory that torch's composition of it takes on a CPU.

Legend: R rows, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` (Zhang & Sennrich 2019, arXiv 1910.07467) whose result has the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if x.device.type == "cpu":
            normed: Tensor = _RmsNorm.apply(x, self.weight, self.eps)
            return normed
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class _RmsNorm(torch.autograd.Function):
    """y = w x / rms(x), its derivative worked by hand: dx = (w dy - n mean(w dy n)) / rms(x), with n = x / rms(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        inverse = torch.rsqrt(lengths.square() / x.size(-1) + eps).to(x.dtype)
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, weight_D)
        return normed * weight_D.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, inverse, weight_D = ctx.saved_tensors
        weight = weight_D.to(gradient.dtype)
        product_RD = (gradient * normed).flatten(0, -2)
        mean = (product_RD @ weight).view_as(inverse) / -normed.size(-1)
        gradient_x = torch.addcmul(gradient * weight, normed, mean).mul_(inverse)
        return gradient_x, product_RD.sum(dim=0, dtype=weight_D.dtype), None
