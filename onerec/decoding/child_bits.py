"""Which codes follow the nodes of a level, as bits with ranks: children are found by two reads instead of a bisection.

A byte stands for eight codes after one node, and beside it stands the number of the first child at or after it; a
child's number is that plus the bits set below its own (a rank directory, Jacobson 1989). It pays where many codes may
follow; there it takes a few bytes a child.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_BYTES = torch.arange(256)
_NUM_BITS = sum((_BYTES >> bit) & 1 for bit in range(8)).to(torch.uint8)  # type: ignore[union-attr]


@dataclass(frozen=True)
class ChildBits:
    """The children of all nodes above a level, each code once a node."""

    bits: Tensor  # uint8, a row of bytes for each node above, one after the other
    firsts: Tensor  # int32, for each of these bytes
    row_bytes: int

    @classmethod
    def of(cls, child_offsets: Tensor, child_codes: Tensor, num_codes: int) -> Self:
        """From a level's compressed sparse rows."""
        row_bytes = -(-num_codes // 8)
        places = torch.repeat_interleave(child_offsets.diff()) * row_bytes + (child_codes >> 3)
        bits = torch.zeros((len(child_offsets) - 1) * row_bytes, dtype=torch.uint8, device=child_codes.device)
        # Each child is there once, so that a sum of bits is their union.
        bits.index_add_(0, places, torch.bitwise_left_shift(1, child_codes & 7).to(torch.uint8))
        counts = _NUM_BITS.to(bits.device)[bits.int()].int()
        return cls(bits, counts.cumsum(0, dtype=torch.int32) - counts, row_bytes)

    def find(self, nodes: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The child, int64, of each node above by its code, or the one before which it would stand; is it there?"""
        places = nodes * self.row_bytes + (codes >> 3)
        read, bit = self.bits[places], torch.bitwise_left_shift(1, codes & 7).to(torch.uint8)
        before = _NUM_BITS.to(read.device)[(read & (bit - 1)).int()]
        return self.firsts[places].long() + before, (read & bit) != 0

    @property
    def nbytes(self) -> int:
        """Memory."""
        return self.bits.nbytes + self.firsts.nbytes
