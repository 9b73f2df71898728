"""Soft code targets out of the item head: what its distribution over items says of each level of the true path.

The item head learns a catalogue faster than the code heads do, since every item has a vector of its own. Summed over
the items below each trie node, its softmax is a distribution over the codes of a level given the true prefix, which
tells the decoder about all plausible items at once where the hard target tells it about one.

Shapes: M targets, N items, L levels, K codes of a level, R items below a node.
"""

import numpy as np
import torch
from torch import Tensor


class CodeTeacher:
    """Aggregates item probabilities along the tree of codes; built once from the ID table."""

    def __init__(self, codes_NL: np.ndarray, codes_per_level: list[int], device: torch.device) -> None:
        self.codes_per_level = codes_per_level
        order_N = np.lexsort(codes_NL.T[::-1])
        sorted_NL = codes_NL[order_N]
        place_N = np.empty_like(order_N)
        place_N[order_N] = np.arange(len(order_N))
        self.order_N = torch.from_numpy(order_N).to(device)  # item at each place of the tree's order
        self.place_N = torch.from_numpy(place_N).to(device)
        self.codes_NL = torch.from_numpy(sorted_NL.astype(np.int64)).to(device)
        ranges = [_prefix_ranges(sorted_NL[:, :level]) for level in range(len(codes_per_level))]
        self.first_NL = torch.from_numpy(np.stack([first[place_N] for first, _ in ranges], axis=1)).to(device)
        self.last_NL = torch.from_numpy(np.stack([last[place_N] for _, last in ranges], axis=1)).to(device)

    def targets(self, ordered_probs_MN: Tensor, items_M: Tensor, level: int) -> Tensor:
        """Distribution (M, K) over the codes of `level` given each target's first `level` codes.

        `ordered_probs_MN` holds the items' probabilities in the order of `order_N`.
        """
        if level == 0:
            return self._first_level(ordered_probs_MN)
        first_M, last_M = self.first_NL[items_M, level], self.last_NL[items_M, level]
        places_MR = first_M[:, None] + torch.arange(int((last_M - first_M).max()), device=first_M.device)
        below_MR = places_MR < last_M[:, None]
        places_MR = torch.where(below_MR, places_MR, first_M[:, None])
        mass_MR = ordered_probs_MN.gather(1, places_MR) * below_MR
        mass_MK = mass_MR.new_zeros(len(items_M), self.codes_per_level[level])
        mass_MK.scatter_add_(1, self.codes_NL[places_MR, level], mass_MR)
        total_M1 = mass_MK.sum(dim=1, keepdim=True)
        return mass_MK / total_M1.clamp(min=torch.finfo(mass_MK.dtype).tiny)

    def _first_level(self, ordered_probs_MN: Tensor) -> Tensor:
        """Mass of each first code; running sums and their differences would take four times as long on a CPU."""
        mass_MK = ordered_probs_MN.new_zeros(len(ordered_probs_MN), self.codes_per_level[0])
        return mass_MK.scatter_add_(1, self.codes_NL[:, 0].expand_as(ordered_probs_MN), ordered_probs_MN)


def _prefix_ranges(prefixes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of sorted prefixes, the first row and the row after the last that share its prefix."""
    changes = np.ones(len(prefixes) + 1, dtype=bool)
    changes[1:-1] = (prefixes[1:] != prefixes[:-1]).any(axis=1)
    edges = np.flatnonzero(changes)
    group = np.cumsum(changes[:-1]) - 1
    return edges[group], edges[group + 1]
