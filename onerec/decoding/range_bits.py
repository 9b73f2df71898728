"""Sets of nodes, one for each request of a batch, as bits over ranges of nodes.

Shapes: B requests, E members of all sets, C nodes asked about, R ranges.
"""

import torch
from torch import Tensor

RANGE_BITS = 12  # of a node's number: nodes of one range share a block of bits


class RangeBits:
    """One bit a node and request, in blocks of 2^12 nodes; ranges without a member share the first block, of zeros.

    Args:
        requests_E: whose set a member belongs to, ascending.
        nodes_E: the member, ascending within a set, each once.
        shape: number of requests and of nodes.
    """

    def __init__(self, requests_E: Tensor, nodes_E: Tensor, shape: tuple[int, int]) -> None:
        num_requests, num_nodes = shape
        num_ranges = (num_nodes >> RANGE_BITS) + 1
        ranges_E = requests_E * num_ranges + (nodes_E >> RANGE_BITS)
        used, block_E = ranges_E.unique_consecutive(return_inverse=True)
        self.block_BR = torch.zeros(num_requests * num_ranges, dtype=torch.int64, device=nodes_E.device)
        self.block_BR[used] = torch.arange(1, len(used) + 1, device=nodes_E.device)
        self.block_BR = self.block_BR.view(num_requests, num_ranges)
        self.bytes = torch.zeros((len(used) + 1) << (RANGE_BITS - 3), dtype=torch.uint8, device=nodes_E.device)
        # Each node is there once, so that a sum of bits is their union.
        bit_E = torch.bitwise_left_shift(torch.ones_like(nodes_E), nodes_E & 7).to(torch.uint8)
        self.bytes.index_add_(0, self._places(block_E + 1, nodes_E), bit_E)

    def lookup(self, nodes_BC: Tensor) -> Tensor:
        """Whether the bit of each node is set."""
        blocks_BC = self.block_BR.gather(1, nodes_BC >> RANGE_BITS)
        bits_BC = self.bytes[self._places(blocks_BC, nodes_BC)] >> (nodes_BC & 7)
        return (bits_BC & 1).bool()

    @staticmethod
    def _places(blocks: Tensor, nodes: Tensor) -> Tensor:
        within = (nodes & ((1 << RANGE_BITS) - 1)) >> 3
        return (blocks << (RANGE_BITS - 3)) + within
