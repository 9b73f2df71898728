"""Dropout whose random numbers cost an eighth: one 64-bit draw decides eight activations.

torch's own mask takes a tenth of a training step on a CPU. The probability is rounded to a multiple of 1/256; the
activations that stay are scaled by exactly what the rounded one asks for. On other devices torch's own is used.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BYTE_VALUES = 256
_SMALLEST_INT64 = -(2**63)


class Dropout(nn.Module):
    """Zero each activation with probability `round(256 * p) / 256` in training and scale the rest."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.num_dropped_values = round(p * _BYTE_VALUES)

    @property
    def probability(self) -> float:
        """Share of activations that are dropped."""
        return self.num_dropped_values / _BYTE_VALUES

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        if not self.training or self.num_dropped_values == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.probability)
        draws = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(_SMALLEST_INT64, None)
        kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= self.num_dropped_values
        scale = torch.tensor(1 / (1 - self.probability), dtype=x.dtype)
        return x * (kept * scale)

    def extra_repr(self) -> str:
        return f"p={self.probability}"
