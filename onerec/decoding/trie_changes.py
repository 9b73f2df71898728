"""What joined and left a trie since its arrays were built, so that a change costs its own size, not the catalogue's.

The nodes of a changed tree are numbered as if its arrays had been spliced: those that joined stand at their places in
code order, and those that left keep theirs, as holes. A number is turned into a place in the arrays by counting the
joined nodes before it. Everything here is as long as the changes are; the trie's arrays are only looked up.

Shapes: A items ever added, J of them in the tree now, l a level, m its joined nodes, E nodes asked about.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from onerec.decoding.child_offsets import ChildOffsets

_Whole = Any  # whole numbers, as a tensor or as an array of NumPy, whose operations on few numbers are quicker


@dataclass(frozen=True)
class Arrays:
    """Compressed sparse rows of a tree as it was built; the fields are those of `Trie`."""

    child_offsets: tuple[ChildOffsets, ...]
    child_codes: tuple[Tensor, ...]
    item_of_rank: Tensor
    rank_of_item: Tensor


@dataclass(frozen=True)
class LevelChanges:
    """Nodes of one level that joined or left; all int64 and ascending, but the codes."""

    places_m: Tensor  # numbers of the joined nodes
    parents_m: Tensor  # the numbers of their parents, one level up
    codes_m: Tensor
    gone: Tensor  # numbers of the nodes that left

    def split(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether each node joined, which joined node it is (or the next one), and its place in the arrays.

        The place of a joined node is that of the node after it.
        """
        before = torch.searchsorted(self.places_m, numbers)
        if not len(self.places_m):
            return torch.zeros_like(numbers, dtype=torch.bool), before, numbers
        joined = before.clamp(max=len(self.places_m) - 1)
        return self.places_m[joined] == numbers, joined, numbers - before

    def number(self, places: Tensor) -> Tensor:
        """Numbers of the nodes at places in the arrays."""
        followers_m = self.places_m - torch.arange(len(self.places_m), device=places.device)
        return places + torch.searchsorted(followers_m, places, right=True)

    def is_gone(self, numbers: Tensor) -> Tensor | None:
        """Which nodes left; None where none did."""
        if not len(self.gone):
            return None
        places = torch.searchsorted(self.gone, numbers).clamp_(max=len(self.gone) - 1)
        return self.gone[places] == numbers

    def num_gone(self, begins: Tensor, ends: Tensor) -> Tensor:
        """How many nodes left of those with numbers from `begins` up to `ends`."""
        return torch.searchsorted(self.gone, ends) - torch.searchsorted(self.gone, begins)

    def to(self, device: torch.device | str) -> Self:
        """The same on `device`."""
        return replace(
            self,
            **{name: getattr(self, name).to(device) for name in ("places_m", "parents_m", "gone")},
            codes_m=self.codes_m.to(device),
        )


@dataclass(frozen=True)
class Changes:
    """All changes of a tree's arrays, level by level, and of its items."""

    arrays: Arrays
    levels: tuple[LevelChanges, ...]
    codes_AL: np.ndarray  # of the items added, whose indices follow those of the arrays
    bucket_rank_A: np.ndarray
    present_A: np.ndarray  # bool, those that have not left again
    gone_items: np.ndarray  # sorted indices of the arrays' own items that left
    items_m: Tensor  # item of each joined leaf
    rank_of_added_A: Tensor  # number of each added item's leaf, -1 for one that left

    @classmethod
    def none(cls, arrays: Arrays) -> Self:
        """No change yet."""
        nothing = torch.zeros(0, dtype=torch.int64, device=arrays.item_of_rank.device)
        num_levels = len(arrays.child_codes)
        no_codes = np.zeros((0, num_levels), dtype=np.int64)
        no_items = np.zeros(0, dtype=np.int64)
        level = LevelChanges(nothing, nothing, nothing, nothing)
        return cls(arrays, (level,) * num_levels, no_codes, no_items, no_items == 0, no_items, nothing, nothing)

    @property
    def size(self) -> int:
        """Items added and items of the arrays that left."""
        return len(self.codes_AL) + len(self.gone_items)

    @property
    def nbytes(self) -> int:
        """Memory, without that of the arrays."""
        items = (self.codes_AL, self.bucket_rank_A, self.present_A, self.gone_items, self.items_m, self.rank_of_added_A)
        nodes = [array for level in self.levels for array in vars(level).values()]
        return sum(array.nbytes for array in (*items, *nodes))

    def ranges(self, level: int, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of the first child, on `level`, and of the one after the last, of each node on the level above."""
        changes, offsets = self.levels[level], self.arrays.child_offsets[level]
        if level == 0:
            is_new, places = torch.zeros_like(numbers, dtype=torch.bool), numbers
        else:
            is_new, _, places = self.levels[level - 1].split(numbers)
        begins, ends = offsets.ranges(places)
        ends = torch.where(is_new, begins, ends) + torch.searchsorted(changes.parents_m, numbers, right=True)
        begins = begins + torch.searchsorted(changes.parents_m, numbers)
        return begins, ends

    def codes(self, level: int, numbers: Tensor) -> Tensor:
        """The code that leads to each node, int64."""
        changes, own = self.levels[level], self.arrays.child_codes[level]
        is_new, joined, places = changes.split(numbers)
        codes = own[places.clamp(max=len(own) - 1)].long()
        return torch.where(is_new, changes.codes_m[joined], codes) if len(changes.codes_m) else codes

    def parents(self, level: int, numbers: Tensor) -> Tensor:
        """The node on the level above that each node of `level` > 0 belongs to."""
        changes = self.levels[level]
        is_new, joined, places = changes.split(numbers)
        above = self.arrays.child_offsets[level].parents(places)
        above = self.levels[level - 1].number(above)
        return torch.where(is_new, changes.parents_m[joined], above) if len(changes.parents_m) else above

    def items(self, ranks: Tensor) -> Tensor:
        """Item of each leaf, int64."""
        own = self.arrays.item_of_rank
        is_new, joined, places = self.levels[-1].split(ranks)
        items = own[places.clamp(max=len(own) - 1)].long()
        return torch.where(is_new, self.items_m[joined], items) if len(self.items_m) else items

    def ranks(self, items: Tensor) -> Tensor:
        """Leaf of each item, int64, -1 for one that is not in the tree."""
        num_own, last = len(self.arrays.rank_of_item), self.levels[-1]
        places = self.arrays.rank_of_item[items.clamp(max=num_own - 1)].long()
        ranks = last.number(places)
        absent = places < 0
        if (gone := last.is_gone(ranks)) is not None:
            absent = absent | gone
        ranks = ranks.masked_fill(absent, -1)
        if not len(self.rank_of_added_A):
            return ranks
        return torch.where(items < num_own, ranks, self.rank_of_added_A[(items - num_own).clamp(min=0)])

    def add(self, codes_ML: np.ndarray, bucket_rank_M: np.ndarray) -> "Changes":
        """Let items join, whose indices follow those of all items so far."""
        return _settle(
            replace(
                self,
                codes_AL=np.concatenate([self.codes_AL, codes_ML.astype(np.int64)]),
                bucket_rank_A=np.concatenate([self.bucket_rank_A, bucket_rank_M.astype(np.int64)]),
                present_A=np.concatenate([self.present_A, np.ones(len(codes_ML), dtype=bool)]),
            )
        )

    def remove(self, items: np.ndarray) -> "Changes":
        """Let items of the tree leave."""
        return self._moved(items, present=False)

    def restore(self, items: np.ndarray) -> "Changes":
        """Let items that left come back."""
        return self._moved(items, present=True)

    def to(self, device: torch.device | str) -> Self:
        """The same on `device`, with arrays that are there already."""
        levels = tuple(level.to(device) for level in self.levels)
        return replace(
            self, levels=levels, items_m=self.items_m.to(device), rank_of_added_A=self.rank_of_added_A.to(device)
        )

    def _moved(self, items: np.ndarray, present: bool) -> "Changes":
        num_own = len(self.arrays.rank_of_item)
        own, added = items[items < num_own], items[items >= num_own] - num_own
        gone_items = np.setdiff1d(self.gone_items, own) if present else np.union1d(self.gone_items, own)
        present_A = self.present_A.copy()
        present_A[added] = present
        return _settle(replace(self, present_A=present_A, gone_items=gone_items))


def _settle(changes: Changes) -> Changes:
    """With everything that follows from the items that were added and that left."""
    changes = _with_joined(changes)
    return replace(changes, levels=_with_gone(changes))


def _with_joined(changes: Changes) -> Changes:
    """The nodes that the present ones of the added items bring: their paths are walked down the arrays together."""
    arrays, device = changes.arrays, changes.arrays.item_of_rank.device
    order_J = np.lexsort([changes.bucket_rank_A, *reversed(changes.codes_AL.T)])
    order_J = order_J[changes.present_A[order_J]]
    codes_JL = torch.from_numpy(changes.codes_AL[order_J]).to(device)
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    known_J = torch.ones(len(order_J), dtype=torch.bool, device=device)  # the prefix so far is in the arrays
    begins_J = torch.zeros_like(known_J)  # it differs from that of the item before
    begins_J[:1] = True
    places_J = numbers_J = torch.zeros(len(order_J), dtype=torch.int64, device=device)
    levels = []
    for level, (offsets, own) in enumerate(zip(arrays.child_offsets, arrays.child_codes, strict=True)):
        last, codes_J = level == len(arrays.child_codes) - 1, codes_JL[:, level]
        begins_J[1:] |= codes_J[1:] != codes_J[:-1]
        low_J, high_J = (offsets_J.long() for offsets_J in offsets.ranges(places_J))
        high_J = torch.where(known_J, high_J, low_J)
        places_J = bisect(own.__getitem__, low_J, high_J, codes_J, right=last)
        found_J = own[places_J.clamp(max=len(own) - 1)] == codes_J
        known_J = known_J & (places_J < high_J) & found_J & (not last)
        new_J = (begins_J | last) & ~known_J
        places_m = places_J[new_J] + torch.arange(int(new_J.sum()), device=device)
        levels.append(LevelChanges(places_m, numbers_J[new_J], codes_J[new_J], nothing))
        joined_J = places_m[new_J.cumsum(0).sub_(1).clamp_(min=0)] if len(places_m) else places_J
        numbers_J = torch.where(known_J, levels[-1].number(places_J), joined_J)
    added_J = torch.from_numpy(order_J).to(device)
    rank_of_added_A = torch.full((len(changes.codes_AL),), -1, dtype=torch.int64, device=device)
    rank_of_added_A[added_J] = numbers_J
    items_m = added_J + len(arrays.rank_of_item)
    return replace(changes, levels=tuple(levels), items_m=items_m, rank_of_added_A=rank_of_added_A)


def _with_gone(changes: Changes) -> tuple[LevelChanges, ...]:
    """The levels with the nodes that left: the leaves of the arrays' items, and who has no child left, bottom up."""
    arrays = changes.arrays
    items = torch.from_numpy(changes.gone_items).to(arrays.rank_of_item.device)
    gone = changes.levels[-1].number(arrays.rank_of_item[items].long()).sort().values
    levels = []
    for level in range(len(changes.levels) - 1, -1, -1):
        levels.append(replace(changes.levels[level], gone=gone))
        if level:
            above, num_gone = changes.parents(level, gone).unique_consecutive(return_counts=True)
            begins, ends = changes.ranges(level, above)
            gone = above[num_gone == ends - begins]
    return tuple(reversed(levels))


def bisect(
    read: Callable[[_Whole], _Whole], begins: _Whole, ends: _Whole, wanted: _Whole, right: bool = False
) -> _Whole:
    """In each sorted run, the first place whose code is not below (`right`: is above) the wanted one, or the run's end.

    Args:
        read: codes at places; it is asked for places of the runs, and for place 0.
        begins, ends: of the runs.
    """
    widest = int((ends - begins).max()) if len(begins) else 0
    before = begins - 1  # the last place known to be too low
    for bit in reversed(range(widest.bit_length())):
        trial = before + (1 << bit)
        inside = trial < ends
        codes = read(trial * inside)
        before = before + (1 << bit) * (inside & ((codes <= wanted) if right else (codes < wanted)))
    return before + 1
