"""What the requests of a batch may not be shown: nodes of the trie all of whose items are excluded.

Shapes: B requests, C candidates of a request, E excluded items of all requests.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from onerec.decoding.range_bits import RangeBits
from onerec.decoding.trie import Trie
from tokenizer.errors import DataError


class Exclusions:
    """Nodes that each request of a batch may not enter, because all their items are excluded.

    Args:
        trie: the catalogue.
        excluded: item indices to exclude, one array a request; repeats are harmless.

    Raises:
        DataError: an item index outside the catalogue.
    """

    def __init__(self, trie: Trie, excluded: Sequence[np.ndarray]) -> None:
        requests_E, items_E = flat_items(trie, excluded)
        ranks_E = trie.ranks_of(items_E)
        inside_E = ranks_E >= 0
        shape = len(excluded), trie.num_nodes(trie.num_levels - 1)
        requests_E, nodes_E = _distinct(requests_E[inside_E], ranks_E[inside_E], shape[1])
        missing = trie.num_items - trie.num_leaves  # nobody can reach them
        self.num_excluded_B = torch.bincount(requests_E, minlength=len(excluded)) + missing
        bits: list[RangeBits | None] = []
        for level in range(trie.num_levels - 1, -1, -1):
            bits.append(RangeBits(requests_E, nodes_E, shape) if len(nodes_E) else None)
            if level:
                shape = len(excluded), trie.num_nodes(level - 1)
                parents_E, num_dead_E = (requests_E * shape[1] + trie.parents(level, nodes_E)).unique_consecutive(
                    return_counts=True
                )
                requests_E, nodes_E = parents_E // shape[1], parents_E % shape[1]
                dead_E = num_dead_E == trie.num_children(level, nodes_E)
                requests_E, nodes_E = requests_E[dead_E], nodes_E[dead_E]
        self._bits = tuple(reversed(bits))

    def bits(self, level: int) -> RangeBits | None:
        """The dead nodes of a level; None when there is none in any request."""
        return self._bits[level]

    def contains(self, level: int, nodes_BC: Tensor) -> Tensor | None:
        """Where a node of `level` is dead (B, C); None when no node of this level is dead in any request."""
        bits = self._bits[level]
        return None if bits is None else bits.lookup(nodes_BC)


def flat_items(trie: Trie, excluded: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """The request that excludes, and the item that is excluded, for all of them."""
    flat = np.concatenate([np.asarray(items, dtype=np.int64) for items in excluded])
    wrong = flat[(flat < 0) | (flat >= trie.num_items)]
    if len(wrong):
        raise DataError(
            f"excluded items: found {len(wrong)} indices outside the catalogue (first: {wrong[0]}), expected "
            f"0 to {trie.num_items - 1}. Exclude items of the catalogue the trie was built from."
        )
    requests = np.repeat(np.arange(len(excluded)), [len(items) for items in excluded])
    return torch.from_numpy(requests).to(trie.device), torch.from_numpy(flat).to(trie.device)


def _distinct(requests_E: Tensor, nodes_E: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Pairs in ascending order, each once."""
    pairs_E = (requests_E * num_nodes + nodes_E).unique()
    return pairs_E // num_nodes, pairs_E % num_nodes
