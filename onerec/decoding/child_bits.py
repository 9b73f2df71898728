"""Which codes follow the nodes of a level, as bits with ranks: children are found by one read instead of a bisection.

A word stands for 32 codes after one node. Its low half has a bit for each, its high half the number of the first child
at or after them; a child's number is that plus the bits set below its own (a rank directory, Jacobson 1989). It pays
where many codes may follow; there it takes a byte or two a child.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

_CODE_BITS = 5  # of a code's number: which bit of its word it is
_WITHIN = (1 << _CODE_BITS) - 1
_HALF = 32


@dataclass(frozen=True)
class ChildBits:
    """The children of all nodes above a level, each code once a node."""

    words: Tensor  # int64, a row of them for each node above, one after the other
    row_words: int

    @classmethod
    def of(cls, child_offsets: Tensor, child_codes: Tensor, num_codes: int) -> Self:
        """From a level's compressed sparse rows."""
        row_words = -(-num_codes // (_WITHIN + 1))
        places = torch.repeat_interleave(child_offsets.diff()) * row_words + (child_codes >> _CODE_BITS)
        words = torch.zeros((len(child_offsets) - 1) * row_words, dtype=torch.int64, device=child_codes.device)
        # Each child is there once, so that a sum of bits is their union.
        words.index_add_(0, places, torch.bitwise_left_shift(1, child_codes.long() & _WITHIN))
        counts = num_bits(words)
        firsts = counts.cumsum(0, dtype=torch.int64).sub_(counts)
        return cls(words.bitwise_or_(firsts << _HALF), row_words)

    def find(self, nodes: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The child, int64, of each node above by its code, or the one before which it would stand; is it there?"""
        words = self.words.take(nodes * self.row_words + (codes >> _CODE_BITS))
        bit = torch.bitwise_left_shift(1, codes & _WITHIN)
        return (words >> _HALF).add_(num_bits(words & (bit - 1))), (words & bit) != 0

    @property
    def nbytes(self) -> int:
        """Memory."""
        return self.words.nbytes


def num_bits(numbers: Tensor) -> Tensor:
    """How many bits are set in each, int64 from 0 to 2^32 - 1."""
    if numbers.device.type == "cpu":
        return torch.from_numpy(np.bitwise_count(numbers.numpy()))  # one instruction a number
    return sum_bits(numbers)


def sum_bits(numbers: Tensor) -> Tensor:
    """The same by PyTorch alone, which has no operation for it: counts side by side, and at last their sum."""
    pairs = numbers - ((numbers >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F0F
    return (eights * 0x01010101 >> 24) & 0xFF
