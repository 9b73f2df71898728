"""Where the children of each node begin on the level below, in little more than a byte a node.

The children of a level's nodes follow each other without a gap, so that a node's begin where those of the node before
it end. Of each block of 32 nodes the first beginning is held in full, and those of its nodes as what they add to it, in
the narrowest type that holds them all: a level whose nodes have few children takes 37 bytes for 32 nodes.

Shapes: n nodes above, E places asked about.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

_BLOCK_BITS = 5
_BLOCK = 1 << _BLOCK_BITS
_STEP_TYPES = torch.uint8, torch.int16, torch.int32


@dataclass(frozen=True)
class ChildOffsets:
    """Children of all nodes above a level; build it with `of`."""

    bases: Tensor  # int32 (n // 32 + 1,), where the children of each block begin
    steps: Tensor  # uint8, int16 or int32 (n // 32 + 1, 33), from there to where each node's begin; the last is its end
    num_nodes: int

    @classmethod
    def of(cls, offsets: Tensor) -> Self:
        """From offsets int32 (n + 1,), of which 0 is the first: children of node k are offsets[k]:offsets[k + 1]."""
        num_nodes = len(offsets) - 1
        padding = _BLOCK - num_nodes % _BLOCK
        ends = offsets[-1:].expand(padding)  # there is always a node number too many, so that it can be asked about
        blocks = torch.cat([offsets, ends]).unfold(0, _BLOCK + 1, _BLOCK)
        bases = blocks[:, 0].clone()
        most = int((blocks[:, -1] - bases).max())
        narrowest = next(dtype for dtype in _STEP_TYPES if most <= torch.iinfo(dtype).max)
        return cls(bases, (blocks - bases[:, None]).to(narrowest), num_nodes)

    def ranges(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """First child, int32, of each node and the one after its last; for node number n the end of all, twice."""
        blocks = nodes >> _BLOCK_BITS
        bases, places = self.bases.take(blocks), nodes + blocks  # a block has one step more than nodes
        return bases + self.steps.take(places), bases + self.steps.take(places.add_(1))

    def parents(self, children: Tensor) -> Tensor:
        """The node, int64, that each child (E,) belongs to."""
        if len(children) * _BLOCK > self.num_nodes:  # then all offsets are less to write than blocks for each child
            return torch.searchsorted(self.plain(), children.int(), right=True) - 1
        children = children.int()
        blocks = torch.searchsorted(self.bases, children, right=True) - 1
        wanted = (children - self.bases.index_select(0, blocks)).to(self.steps.dtype)
        within = torch.searchsorted(self.steps.index_select(0, blocks), wanted[:, None], right=True)[:, 0] - 1
        return (blocks << _BLOCK_BITS) + within

    def plain(self) -> Tensor:
        """What `of` was given."""
        return (self.bases[:, None] + self.steps[:, :_BLOCK]).flatten()[: self.num_nodes + 1]

    def to(self, device: torch.device | str) -> Self:
        """The same on `device`."""
        return replace(self, bases=self.bases.to(device), steps=self.steps.to(device))

    @property
    def nbytes(self) -> int:
        """Memory."""
        return self.bases.nbytes + self.steps.nbytes
