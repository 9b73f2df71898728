"""The catalogue as a prefix tree over semantic IDs: which codes may follow which prefix, for all beams at once.

Shapes: B batch, W beams, C candidates of a request, N items, M of them in the tree, L code levels.

Items are sorted by their codes; an item's place in that order is its *rank*. A node of level l is a distinct prefix of
l + 1 codes, numbered in the same order, so that the children of a node are a contiguous run of nodes one level down.
On the last level every item is a node of its own and the node number is the rank: items that share all their codes (the
collision policy `bucket`) are siblings with one code, in their given order. A tree may hold some of the catalogue's
items only; the others have no rank and are never reached. The layout is compressed sparse rows per level, as in STATIC
(arXiv 2602.22647); it departs from that paper so:

1. The first level is dense by its numbering: all of its nodes are the root's children. Below, whether a code follows a
   prefix is looked up only of the codes that could win (`onerec.decoding.continuations`): in bits with ranks on levels
   where many may follow (`onerec.decoding.child_bits`), elsewhere by bisection of the run of its children. A dense
   table of the second level, where 2048 codes may follow 2048, would take 16 MB whatever the catalogue's size.
2. Candidates are packed per request, not padded per beam to the largest branching: work follows the children there are.
3. Exclusions of one request are bits over ranges of nodes, found once before the search, bottom up; ranges without an
   exclusion share one block of zeros, so that a request costs what it excludes, not the catalogue
   (`onerec.decoding.exclusions`).
4. What many requests may not reach (a category) is cut off by `restrict`, so that the search does not even read it.
5. Items join and leave without a rebuild: `add`, `remove` and `restore` make the next tree, which shares the arrays of
   this one and reads them past a short list of changes (`onerec.decoding.trie_changes`). A tree never changes itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from onerec.decoding.child_bits import ChildBits
from onerec.decoding.child_offsets import ChildOffsets
from onerec.decoding.id_table import check_table, cut_levels, narrowest_type, sort_items
from onerec.decoding.trie_changes import Arrays, Changes, bisect
from tokenizer.errors import DataError

SPARSE_SHARE = 1 / 16  # of its codes that follow a node on average; up to here listing them is fast, and bits are many


@dataclass(frozen=True)
class Candidates:
    """Children of a request's beams, packed row by row in beam order."""

    slots_BC: Tensor  # int64, the beam a candidate continues
    nodes_BC: Tensor  # int64, the candidate's node on its level
    codes_BC: Tensor  # int64, the code that leads to it
    present_BC: Tensor  # bool, False for the padding at a row's end


@dataclass(frozen=True)
class Trie:
    """Prefix tree of a catalogue in compressed sparse rows; build it with `from_table`."""

    codes_per_level: tuple[int, ...]
    child_offsets: tuple[ChildOffsets, ...]  # a level: of the nodes above
    child_codes: tuple[Tensor, ...]  # a level: uint8, int16 or int32 (nodes,)
    item_of_rank: Tensor  # int32 (M,)
    rank_of_item: Tensor  # int32 (N,), -1 for an item that is not in the tree
    changes: Changes | None = None  # since the arrays above were built, which then know nothing of them

    @classmethod
    def from_table(
        cls,
        codes_NL: np.ndarray,
        codes_per_level: Sequence[int],
        bucket_rank_N: np.ndarray | None = None,
    ) -> Self:
        """Build the tree of the items whose codes are the rows of `codes_NL`.

        Args:
            codes_NL: integer codes, row k is item index k.
            codes_per_level: number of codes of each level.
            bucket_rank_N: rank of an item among those of equal codes; None where no two items share all codes.

        Raises:
            DataError: no items, a wrong shape or type, a code out of range, two items of equal codes and rank.
        """
        sizes = tuple(int(size) for size in codes_per_level)
        ranks_N = np.zeros(len(codes_NL), dtype=np.int32) if bucket_rank_N is None else bucket_rank_N
        check_table(codes_NL, sizes, ranks_N)
        columns = [codes_NL[:, level].astype(narrowest_type(size)) for level, size in enumerate(sizes)]
        item_of_rank = sort_items(columns, sizes, ranks_N).astype(np.int32)
        rank_of_item = np.empty_like(item_of_rank)
        rank_of_item[item_of_rank] = np.arange(len(item_of_rank), dtype=np.int32)
        offsets, codes = cut_levels(columns, item_of_rank, ranks_N)
        return cls(
            codes_per_level=sizes,
            child_offsets=tuple(ChildOffsets.of(torch.from_numpy(of_level)) for of_level in offsets),
            child_codes=tuple(map(torch.from_numpy, codes)),
            item_of_rank=torch.from_numpy(item_of_rank),
            rank_of_item=torch.from_numpy(rank_of_item),
        )

    def restrict(self, allowed_N: np.ndarray) -> Self:
        """The tree, in arrays of its own, of those of its items that are allowed, a bool for each of the catalogue.

        Raises:
            DataError: none of its items is allowed, or not one bool an item.
        """
        if allowed_N.shape != (self.num_items,) or allowed_N.dtype != bool:
            raise DataError(
                f"allowed items: found {allowed_N.dtype} of shape {allowed_N.shape}, expected bool of shape "
                f"{(self.num_items,)}. Give one value for each item of the catalogue."
            )
        items = torch.from_numpy(np.flatnonzero(allowed_N)).to(self.device)
        kept = self.ranks_of(items)
        kept = kept[kept >= 0].sort().values  # nodes of a level that stay, the leaves at first
        if not len(kept):
            raise DataError("allowed items: found none in the tree, expected at least one. Allow more items.")
        item_of_rank = self.items_of(kept).int()
        rank_of_item = torch.full((self.num_items,), -1, dtype=torch.int32, device=self.device)
        rank_of_item[item_of_rank] = torch.arange(len(kept), dtype=torch.int32, device=self.device)
        offsets, codes = [], []
        for level in reversed(range(self.num_levels)):
            codes.append(self.codes_of(level, kept).to(self.child_codes[level].dtype))
            kept, counts = self.parents(level, kept).unique_consecutive(return_counts=True)
            offsets.append(ChildOffsets.of(torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()))
        return replace(
            self,
            child_offsets=tuple(reversed(offsets)),
            child_codes=tuple(reversed(codes)),
            item_of_rank=item_of_rank,
            rank_of_item=rank_of_item,
            changes=None,
        )

    def compact(self) -> Self:
        """The same tree in arrays of its own, to be read without a list of changes; `restore` has nobody left there."""
        return self.restrict(np.ones(self.num_items, dtype=bool))

    def add(self, codes_ML: np.ndarray, bucket_rank_M: np.ndarray | None = None) -> Self:
        """The tree with more items, whose indices follow those of all items so far.

        Args:
            codes_ML: integer codes of the new items.
            bucket_rank_M: their ranks among new items of equal codes, behind whom they find there; None for all 0.

        Raises:
            DataError: a wrong shape or type, or a code out of range.
        """
        ranks_M = np.zeros(len(codes_ML), dtype=np.int32) if bucket_rank_M is None else bucket_rank_M
        check_table(codes_ML, self.codes_per_level, ranks_M)
        return replace(self, changes=self._changes.add(codes_ML, ranks_M))

    def remove(self, items: np.ndarray) -> Self:
        """The tree without these items, whose indices nobody else is given.

        Raises:
            DataError: one of them is not in the tree, or no other is.
        """
        items = np.unique(items)
        self._check_presence(items, present=True)
        if len(items) == self.num_leaves:
            raise DataError("items that leave: found all of the tree's, expected one to stay. Add another before.")
        return replace(self, changes=self._changes.remove(items))

    def restore(self, items: np.ndarray) -> Self:
        """The tree with items that `remove` took out, each at its old place.

        Raises:
            DataError: one of them is in the tree, or never was.
        """
        items = np.unique(items)
        self._check_presence(items, present=False)
        return replace(self, changes=self._changes.restore(items))

    def _check_presence(self, items: np.ndarray, present: bool) -> None:
        known = (items >= 0) & (items < self.num_items)
        inside = torch.from_numpy(items[known]).to(self.device)
        fits = (self.ranks_of(inside) >= 0) == present
        if not present:  # a place to come back to
            num_own = len(self.rank_of_item)
            fits &= (inside >= num_own) | (self.rank_of_item[inside.clamp(max=num_own - 1)] >= 0)
        known[known] = fits.cpu().numpy()
        if not known.all():
            raise DataError(
                f"items: found {items[~known][:5].tolist()}, expected such as are "
                f"{'in the tree' if present else 'not in the tree, but were'}. Ask for what may change."
            )

    @property
    def _changes(self) -> Changes:
        if self.changes is not None:
            return self.changes
        return Changes.none(Arrays(self.child_offsets, self.child_codes, self.item_of_rank, self.rank_of_item))

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.item_of_rank.device

    @property
    def num_items(self) -> int:
        """Items of the catalogue N, whether in the tree or not."""
        return len(self.rank_of_item) + (0 if self.changes is None else len(self.changes.codes_AL))

    @property
    def num_leaves(self) -> int:
        """Items in the tree."""
        if self.changes is None:
            return len(self.item_of_rank)
        return len(self.item_of_rank) - len(self.changes.gone_items) + len(self.changes.items_m)

    @property
    def num_changes(self) -> int:
        """Items added and removed since the arrays were built; look-ups take longer by its logarithm."""
        return 0 if self.changes is None else self.changes.size

    @property
    def num_levels(self) -> int:
        """Code levels L."""
        return len(self.codes_per_level)

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays, with the bits once these are made, and of the changes."""
        bits = () if "child_bits" not in self.__dict__ else self.child_bits
        looked_up = sum(offsets.nbytes for offsets in self.child_offsets)
        looked_up += sum(of_level.nbytes for of_level in bits if of_level is not None)
        tensors = sum(tensor.nbytes for tensor in (*self.child_codes, self.item_of_rank, self.rank_of_item))
        return looked_up + tensors + (0 if self.changes is None else self.changes.nbytes)

    @cached_property
    def most_children(self) -> tuple[int, ...]:
        """The largest number of children, a level, in the arrays."""
        return tuple(int(offsets.plain().diff().max()) for offsets in self.child_offsets)

    @cached_property
    def has_unique_codes(self) -> bool:
        """Whether no two items of the tree share all their codes; not looked into where the tree has changes."""
        if self.changes is not None:
            return False
        begins_N = torch.zeros(self.num_leaves, dtype=torch.bool, device=self.device)
        begins_N[self.child_offsets[-1].plain()[:-1]] = True
        codes_N = self.child_codes[-1]
        return bool((begins_N[1:] | (codes_N[1:] != codes_N[:-1])).all())

    @cached_property
    def child_bits(self) -> tuple[ChildBits | None, ...]:
        """The children of a level as bits, a level, to find them faster.

        None where so few codes follow that it is not worth the memory, or where several leaves may share a code.
        """
        return tuple(
            ChildBits.of(offsets.plain(), codes, num_codes) if self.is_wide(level) else None
            for level, (offsets, codes, num_codes) in enumerate(
                zip(self.child_offsets, self.child_codes, self.codes_per_level, strict=True)
            )
        )

    def is_wide(self, level: int) -> bool:
        """Whether many of the codes of `level` follow the nodes above, and each of them stands for one child."""
        return self.share(level) > SPARSE_SHARE and (level < self.num_levels - 1 or self.has_unique_codes)

    def share(self, level: int) -> float:
        """Codes of `level` that follow a node above, on average, among all."""
        num_above = self.num_nodes(level - 1) if level else 1
        return self.num_nodes(level) / (self.codes_per_level[level] * num_above)

    def num_nodes(self, level: int) -> int:
        """One more than the largest node number of a level, whose nodes are the distinct prefixes of `level + 1` codes.

        On the last level they are the items themselves. A number whose nodes left stays unused until `compact`.
        """
        joined = 0 if self.changes is None else len(self.changes.levels[level].places_m)
        return len(self.child_codes[level]) + joined

    def to(self, device: torch.device | str) -> Self:
        """The same tree with its tensors on `device`."""
        moved = replace(
            self,
            child_offsets=tuple(offsets.to(device) for offsets in self.child_offsets),
            child_codes=tuple(codes.to(device) for codes in self.child_codes),
            item_of_rank=self.item_of_rank.to(device),
            rank_of_item=self.rank_of_item.to(device),
            changes=None,
        )
        if self.changes is None:
            return moved
        return replace(moved, changes=replace(self.changes.to(device), arrays=moved._changes.arrays))

    def children(self, level: int, nodes_BW: Tensor, alive_BW: Tensor) -> Candidates:
        """All children, on `level`, of the living beams' nodes on the level above (node 0, the root, for level 0)."""
        if level == 0 and self.changes is None and alive_BW.size(1) == 1:
            return self._children_of_root(alive_BW)
        starts_BW, ends_BW = self.child_ranges(level, nodes_BW)
        counts_BW = (ends_BW - starts_BW) * alive_BW
        ends_BW = counts_BW.cumsum(dim=1)
        totals_B1 = ends_BW[:, -1:]
        shifts_BW = starts_BW - ends_BW + counts_BW  # from a place in the row to a node
        num_candidates = max(1, int(totals_B1.max()))
        place_C = torch.arange(num_candidates, device=self.device)
        present_BC = place_C < totals_B1
        turns_BC = torch.zeros(len(nodes_BW), num_candidates + 1, dtype=torch.int64, device=self.device)
        turns_BC.scatter_add_(1, ends_BW, torch.ones_like(ends_BW))  # here the turn of the next beam begins
        slots_BC = turns_BC[:, :-1].cumsum(dim=1).clamp_(max=nodes_BW.size(1) - 1)
        nodes_BC = (place_C + shifts_BW.gather(1, slots_BC)).mul_(present_BC)
        if self.changes is not None and (gone_BC := self.changes.levels[level].is_gone(nodes_BC)) is not None:
            present_BC = present_BC & ~gone_BC
        return Candidates(slots_BC, nodes_BC, self.codes_of(level, nodes_BC), present_BC)

    def _children_of_root(self, alive_B1: Tensor) -> Candidates:
        """All nodes of the first level, without a look-up."""
        shape = len(alive_B1), self.num_nodes(0)
        nodes_BC = torch.arange(shape[1], device=self.device).expand(shape)
        slots_BC = torch.zeros(shape, dtype=torch.int64, device=self.device)
        return Candidates(slots_BC, nodes_BC, self.child_codes[0].long().expand(shape), alive_B1.expand(shape))

    def find_children(self, level: int, nodes: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The child, on `level`, of each node on the level above by its code, int64, and whether there is one.

        Of several leaves with one code the first is found.
        """
        if self.changes is None and (bits := self.child_bits[level]) is not None:
            found, present = bits.find(nodes, codes)
            return found.clamp_(max=self.num_nodes(level) - 1), present
        begins, ends = self.child_ranges(level, nodes)
        if self.changes is None and self.device.type == "cpu":
            own = self.child_codes[level].numpy()
            found = torch.from_numpy(bisect(own.__getitem__, begins.numpy(), ends.numpy(), codes.numpy())).long()
        else:
            found = bisect(lambda numbers: self.codes_of(level, numbers), begins.long(), ends.long(), codes)
        inside = found.clamp(max=self.num_nodes(level) - 1)
        present = (found < ends) & (self.codes_of(level, inside) == codes)
        if self.changes is not None and (gone := self.changes.levels[level].is_gone(inside)) is not None:
            present = present & ~gone
        return inside, present

    def child_ranges(self, level: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Number of the first child, on `level`, and of the one after the last, of nodes on the level above."""
        if self.changes is not None:
            return self.changes.ranges(level, nodes)
        return self.child_offsets[level].ranges(nodes)

    def num_children(self, level: int, nodes: Tensor) -> Tensor:
        """How many children, on `level`, nodes on the level above have."""
        begins, ends = self.child_ranges(level, nodes)
        if self.changes is None:
            return ends - begins
        return ends - begins - self.changes.levels[level].num_gone(begins, ends)

    def codes_of(self, level: int, nodes: Tensor) -> Tensor:
        """The code, int64, that leads to each node of `level`."""
        if self.changes is not None:
            return self.changes.codes(level, nodes)
        return self.child_codes[level].take(nodes).long()

    def parents(self, level: int, nodes: Tensor) -> Tensor:
        """The node on the level above that each node of `level` belongs to: int64, 0, the root, for level 0."""
        if level == 0:
            return torch.zeros_like(nodes)
        if self.changes is not None:
            return self.changes.parents(level, nodes)
        return self.child_offsets[level].parents(nodes)

    def items_of(self, ranks: Tensor) -> Tensor:
        """Item indices, int64, of leaves."""
        return self.item_of_rank.take(ranks).long() if self.changes is None else self.changes.items(ranks)

    def ranks_of(self, items: Tensor) -> Tensor:
        """Leaves, int64, of item indices; -1 for an item that is not in the tree."""
        return self.rank_of_item.take(items).long() if self.changes is None else self.changes.ranks(items)
