"""Dropout of activations and of whole blocks.

Random numbers cost an eighth: one 64-bit draw decides eight activations. torch's own mask takes a tenth of a training
step on a CPU. The probability is rounded to a multiple of 1/256; the activations that stay are scaled by exactly what
the rounded one asks for. On other devices torch's own is used.

Shapes: B batch, X blocks.
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
        values = draws.view(torch.uint8)[: x.numel()].view(x.shape).to(x.dtype)  # exact in bfloat16 too
        # In place, in the dtype of x: to compare bytes and turn the answers into numbers takes four times as long.
        return x * values.ge_(self.num_dropped_values).mul_(1 / (1 - self.probability))

    def extra_repr(self) -> str:
        return f"p={self.probability}"


class StochasticDepth(nn.Module):
    """Let each row pass a block by with a probability that grows in even steps to the last block's.

    The linear rule of arXiv 1603.09382 (section 3), but for each row of a batch by itself, so that a process uses every
    weight in every step, and with rows that go through scaled up in training instead of all scaled down afterwards.
    """

    def __init__(self, last_probability: float, num_blocks: int) -> None:
        super().__init__()
        self.probabilities_X = [last_probability * (number + 1) / num_blocks for number in range(num_blocks)]

    def forward(self, number: int, before: Tensor, after: Tensor) -> Tensor:
        """What block `number` was given and what it made of it, both (B, ...) -> (B, ...)."""
        probability = self.probabilities_X[number]
        if not self.training or probability == 0:
            return after
        kept_B = torch.rand(len(before), device=before.device) >= probability
        scale = (kept_B / (1 - probability)).to(before.dtype)
        return before + (after - before) * scale.view(-1, *[1] * (before.dim() - 1))


def grade_dropout(blocks: nn.ModuleList, first: float, last: float | None) -> None:
    """Give the blocks of a stack dropout in even steps from the first one's to the last one's; None: leave them alike.

    Less dropout the higher a block stands steadies deep sequential recommenders (arXiv 2311.11351).
    """
    if last is None:
        return
    for number, block in enumerate(blocks):
        block.dropout = Dropout(first + (last - first) * number / max(len(blocks) - 1, 1))
