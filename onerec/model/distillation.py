"""What the item head's distribution over items teaches the code heads.

The item head learns a catalogue faster than the code heads do, since every item has a vector of its own. Summed over
the items below each trie node, its softmax is a distribution over the codes of a level given a prefix, which tells the
decoder about all plausible items at once where the hard target tells it about one. The prefix may be the true item's or
that of an item drawn from the distribution itself: a beam search follows plausible prefixes more often than true ones.

Shapes: M targets, C targets of a part, N items, L levels, K codes of a level, R items below a node.
"""

from dataclasses import dataclass
from functools import cached_property

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
        self.num_below_K = torch.bincount(self.codes_NL[:, 0], minlength=codes_per_level[0])  # items below a first code
        ranges = [_prefix_ranges(sorted_NL[:, :level]) for level in range(len(codes_per_level))]
        self.first_NL = torch.from_numpy(np.stack([first[place_N] for first, _ in ranges], axis=1)).to(device)
        self.last_NL = torch.from_numpy(np.stack([last[place_N] for _, last in ranges], axis=1)).to(device)

    def lesson(self, ordered_probs_MN: Tensor) -> "Lesson":
        """What the items' probabilities, in the order of `order_N`, say of the codes."""
        return Lesson(self, ordered_probs_MN)


@dataclass(frozen=True)
class Lesson:
    """The item head's distribution for each of M targets."""

    teacher: CodeTeacher
    ordered_probs_MN: Tensor

    @cached_property
    def first_level(self) -> Tensor:
        """Mass (M, K) of each first code, whose items stand beside one another."""
        lengths_MK = self.teacher.num_below_K.expand(len(self.ordered_probs_MN), -1)
        return torch.segment_reduce(self.ordered_probs_MN, "sum", lengths=lengths_MK, axis=1, unsafe=True)

    def code_targets(self, items_M: Tensor, level: int) -> Tensor:
        """Distribution (M, K) over the codes of `level` given the first `level` codes of `items_M`."""
        if level == 0:
            return self.first_level
        teacher = self.teacher
        first_M, last_M = teacher.first_NL[items_M, level], teacher.last_NL[items_M, level]
        places_MR, mass_MR = self._below(first_M, last_M)
        mass_MK = mass_MR.new_zeros(len(items_M), teacher.codes_per_level[level])
        mass_MK.scatter_add_(1, teacher.codes_NL[places_MR, level], mass_MR)
        total_M1 = mass_MK.sum(dim=1, keepdim=True)
        return mass_MK / total_M1.clamp(min=torch.finfo(mass_MK.dtype).tiny)

    def sample_items(self) -> Tensor:
        """One item (M,) a target, drawn from its distribution: a first code, then an item below it."""
        first_codes_M = _draw(self.first_level)
        ends_K = self.teacher.num_below_K.cumsum(0)
        first_M = torch.nn.functional.pad(ends_K, (1, 0))[first_codes_M]
        places_MR, mass_MR = self._below(first_M, ends_K[first_codes_M])
        return self.teacher.order_N[places_MR.gather(1, _draw(mass_MR)[:, None])[:, 0]]

    def _below(self, first_M: Tensor, last_M: Tensor) -> tuple[Tensor, Tensor]:
        """Places (M, R) from `first_M` up to `last_M`, and their mass, 0 beyond."""
        places_MR = first_M[:, None] + torch.arange(int((last_M - first_M).max()), device=first_M.device)
        below_MR = places_MR < last_M[:, None]
        places_MR = torch.where(below_MR, places_MR, first_M[:, None])
        return places_MR, self.ordered_probs_MN.gather(1, places_MR) * below_MR


class Lessons:
    """What M targets are taught, collected part by part, so that no part's distribution over items need be kept.

    Args:
        items_M: the true targets.
        path_sampling: share of the targets for which the decoder reads and learns the codes of a drawn item.
    """

    def __init__(self, teacher: CodeTeacher, items_M: Tensor, path_sampling: float) -> None:
        self._teacher, self._path_sampling = teacher, path_sampling
        self.paths_M = items_M.clone()
        sizes = [(len(items_M), num_codes) for num_codes in teacher.codes_per_level]
        self.code_targets = [torch.empty(size, device=items_M.device) for size in sizes]

    def take(self, rows: slice, ordered_probs_CN: Tensor) -> None:
        """Choose the paths of some rows, and learn each level's distribution over codes along them."""
        lesson = self._teacher.lesson(ordered_probs_CN)
        paths_C = self.paths_M[rows]
        if self._path_sampling:
            drawn_C = torch.rand(paths_C.shape, device=paths_C.device) < self._path_sampling
            paths_C[:] = torch.where(drawn_C, lesson.sample_items(), paths_C)
        for level, targets_MK in enumerate(self.code_targets):
            targets_MK[rows] = lesson.code_targets(paths_C, level)


def _draw(mass_MR: Tensor) -> Tensor:
    """A column (M,) a row by its mass; on a CPU torch's multinomial takes 18 times as long to draw one."""
    running_MR = mass_MR.cumsum(dim=1)
    marks_M1 = torch.rand(len(mass_MR), 1, device=mass_MR.device) * running_MR[:, -1:]
    return torch.searchsorted(running_MR, marks_M1, right=True)[:, 0].clamp(max=mass_MR.size(1) - 1)


def _prefix_ranges(prefixes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of sorted prefixes, the first row and the row after the last that share its prefix."""
    changes = np.ones(len(prefixes) + 1, dtype=bool)
    changes[1:-1] = (prefixes[1:] != prefixes[:-1]).any(axis=1)
    edges = np.flatnonzero(changes)
    group = np.cumsum(changes[:-1]) - 1
    return edges[group], edges[group + 1]
