"""The catalogue as a prefix tree over semantic IDs: which codes may follow which prefix, for all beams at once.

Shapes: B batch, W beams, C candidates of a request, E excluded items of a request, N items, M of them in the tree, L
code levels.

Items are sorted by their codes; an item's place in that order is its *rank*. A node of level l is a distinct prefix of
l + 1 codes, numbered in the same order, so that the children of a node are a contiguous run of nodes one level down.
On the last level every item is a node of its own and the node number is the rank: items that share all their codes (the
collision policy `bucket`) are siblings with one code, in their given order. A tree may hold some of the catalogue's
items only; the others have no rank and are never reached. The layout is compressed sparse rows per level, as in STATIC
(arXiv 2602.22647); it departs from that paper so:

1. Children are listed, never looked up by code, so even the first levels need no dense table.
2. Candidates are packed per request, not padded per beam to the largest branching: work follows the children there are.
3. Exclusions of one request are nodes that died with all their items, found once before the search, bottom up.
4. What many requests may not reach (items taken out of the catalogue, a category) is cut off by `restrict`, so that
   the search does not even read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from tokenizer.errors import ConfigError, DataError


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
    child_offsets: tuple[
        Tensor, ...
    ]  # a level: int32 (nodes above + 1,); children of node n are offsets[n]:offsets[n + 1]
    child_codes: tuple[Tensor, ...]  # a level: uint8, int16 or int32 (nodes,)
    item_of_rank: Tensor  # int32 (M,)
    rank_of_item: Tensor  # int32 (N,), -1 for an item that is not in the tree

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
        _check_table(codes_NL, sizes, ranks_N)
        columns = [codes_NL[:, level].astype(_narrowest_type(size)) for level, size in enumerate(sizes)]
        item_of_rank = np.lexsort([ranks_N, *reversed(columns)]).astype(np.int32)
        rank_of_item = np.empty_like(item_of_rank)
        rank_of_item[item_of_rank] = np.arange(len(item_of_rank), dtype=np.int32)

        starts_above = np.zeros(1, dtype=np.int64)  # first rank of every node of the level above; the root at first
        begins_N = np.zeros(len(item_of_rank), dtype=bool)  # a prefix begins at this rank
        begins_N[0] = True
        offsets, codes = [], []
        for level, column in enumerate(columns):
            sorted_N = column[item_of_rank]
            begins_N[1:] |= sorted_N[1:] != sorted_N[:-1]
            starts = np.flatnonzero(begins_N)
            if level == len(columns) - 1:
                _check_shared(codes_NL, item_of_rank, begins_N, ranks_N)
                starts = np.arange(len(item_of_rank))
            offsets.append(np.append(np.searchsorted(starts, starts_above), len(starts)).astype(np.int32))
            codes.append(sorted_N[starts])
            starts_above = starts
        return cls(
            codes_per_level=sizes,
            child_offsets=tuple(map(torch.from_numpy, offsets)),
            child_codes=tuple(map(torch.from_numpy, codes)),
            item_of_rank=torch.from_numpy(item_of_rank),
            rank_of_item=torch.from_numpy(rank_of_item),
        )

    def restrict(self, allowed_N: np.ndarray) -> Self:
        """The tree, on the CPU, of those of its items that are allowed, a bool for each item of the catalogue.

        Raises:
            DataError: none of its items is allowed, or not one bool an item.
        """
        if allowed_N.shape != (self.num_items,) or allowed_N.dtype != bool:
            raise DataError(
                f"allowed items: found {allowed_N.dtype} of shape {allowed_N.shape}, expected bool of shape "
                f"{(self.num_items,)}. Give one value for each item of the catalogue."
            )
        item_of_rank = self.item_of_rank.cpu().numpy()
        kept = np.flatnonzero(allowed_N[item_of_rank])  # nodes of a level that stay, the ranks at first
        if not len(kept):
            raise DataError("allowed items: found none in the tree, expected at least one. Allow more items.")
        item_of_rank = item_of_rank[kept]
        rank_of_item = np.full(self.num_items, -1, dtype=np.int32)
        rank_of_item[item_of_rank] = np.arange(len(kept), dtype=np.int32)
        offsets, codes = [], []
        for level in reversed(range(self.num_levels)):
            codes.append(self.child_codes[level].cpu().numpy()[kept])
            parents = np.searchsorted(self.child_offsets[level].cpu().numpy(), kept, side="right") - 1
            kept, counts = np.unique(parents, return_counts=True)
            offsets.append(np.append(0, counts.cumsum()).astype(np.int32))
        return replace(
            self,
            child_offsets=tuple(map(torch.from_numpy, reversed(offsets))),
            child_codes=tuple(map(torch.from_numpy, reversed(codes))),
            item_of_rank=torch.from_numpy(item_of_rank),
            rank_of_item=torch.from_numpy(rank_of_item),
        )

    @property
    def num_items(self) -> int:
        """Items of the catalogue N, whether in the tree or not."""
        return len(self.rank_of_item)

    @property
    def num_leaves(self) -> int:
        """Items in the tree."""
        return len(self.item_of_rank)

    @property
    def num_levels(self) -> int:
        """Code levels L."""
        return len(self.codes_per_level)

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors."""
        tensors = [*self.child_offsets, *self.child_codes, self.item_of_rank, self.rank_of_item]
        return sum(tensor.nbytes for tensor in tensors)

    def num_nodes(self, level: int) -> int:
        """Nodes of a level: distinct prefixes of `level + 1` codes; the items themselves on the last."""
        return len(self.child_codes[level])

    def to(self, device: torch.device | str) -> Self:
        """The same tree with its tensors on `device`."""
        return replace(
            self,
            child_offsets=tuple(offsets.to(device) for offsets in self.child_offsets),
            child_codes=tuple(codes.to(device) for codes in self.child_codes),
            item_of_rank=self.item_of_rank.to(device),
            rank_of_item=self.rank_of_item.to(device),
        )

    def children(self, level: int, nodes_BW: Tensor, alive_BW: Tensor) -> Candidates:
        """All children, on `level`, of the living beams' nodes on the level above (node 0, the root, for level 0)."""
        offsets = self.child_offsets[level]
        starts_BW = offsets[nodes_BW]
        counts_BW = (offsets[nodes_BW + 1] - starts_BW) * alive_BW
        ends_BW = counts_BW.cumsum(dim=1, dtype=torch.int32)
        num_candidates = max(1, int(ends_BW[:, -1].max()))
        position_C = torch.arange(num_candidates, dtype=torch.int32, device=nodes_BW.device)
        position_BC = position_C.expand(len(nodes_BW), -1).contiguous()
        present_BC = position_BC < ends_BW[:, -1:]
        slots_BC = torch.searchsorted(ends_BW, position_BC, right=True).clamp_(max=nodes_BW.shape[1] - 1)
        shifts_BW = (starts_BW - ends_BW + counts_BW).long()  # from a place in the row to a node
        nodes_BC = (position_BC + shifts_BW.gather(1, slots_BC)).masked_fill_(~present_BC, 0)
        return Candidates(slots_BC, nodes_BC, self.child_codes[level][nodes_BC].long(), present_BC)


class Exclusions:
    """Nodes that each request of a batch may not enter, because all their items are excluded.

    Args:
        trie: the catalogue.
        excluded: item indices to exclude, one array a request; repeats are harmless.

    Raises:
        DataError: an item index outside the catalogue.
    """

    def __init__(self, trie: Trie, excluded: Sequence[np.ndarray]) -> None:
        dead_BE = _pad_sorted_ranks(trie, excluded)
        missing = trie.num_items - trie.num_leaves  # nobody can reach them
        self.num_excluded_B = (dead_BE < trie.num_leaves).sum(dim=1) + missing
        dead: list[Tensor] = [dead_BE]
        for level in range(trie.num_levels - 1, 0, -1):
            dead.append(_dead_parents(trie.child_offsets[level], dead[-1]))
        self._dead = tuple(reversed(dead))  # a level: int64 (B, E), sorted, padded with the level's number of nodes

    def contains(self, level: int, nodes_BC: Tensor) -> Tensor | None:
        """Where a node of `level` is dead (B, C); None when no node of this level is dead in any request."""
        dead_BE = self._dead[level]
        if dead_BE.shape[1] == 0:
            return None
        places_BC = torch.searchsorted(dead_BE, nodes_BC).clamp_(max=dead_BE.shape[1] - 1)
        return dead_BE.gather(1, places_BC) == nodes_BC


def _pad_sorted_ranks(trie: Trie, excluded: Sequence[np.ndarray]) -> Tensor:
    """Each request's distinct excluded ranks, sorted (B, E), padded with the number of leaves."""
    sizes = [len(items) for items in excluded]
    flat = np.concatenate([np.asarray(items, dtype=np.int64) for items in excluded])
    wrong = flat[(flat < 0) | (flat >= trie.num_items)]
    if len(wrong):
        raise DataError(
            f"excluded items: found {len(wrong)} indices outside the catalogue (first: {wrong[0]}), expected "
            f"0 to {trie.num_items - 1}. Exclude items of the catalogue the trie was built from."
        )
    rows = np.repeat(np.arange(len(sizes)), sizes)
    places = np.arange(len(flat)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    padded_BE = np.full((len(sizes), max(sizes)), -1)
    padded_BE[rows, places] = flat
    items_BE = torch.from_numpy(padded_BE).to(trie.rank_of_item.device)
    ranks_BE = trie.rank_of_item[items_BE].long().masked_fill_(items_BE < 0, -1)
    return _sort_distinct(ranks_BE.masked_fill_(ranks_BE < 0, trie.num_leaves), trie.num_leaves)


def _dead_parents(child_offsets: Tensor, dead_BE: Tensor) -> Tensor:
    """Parents all of whose children are in `dead_BE`, in the same form one level up."""
    num_parents = len(child_offsets) - 1
    parents_BE = torch.searchsorted(child_offsets, dead_BE.int(), right=True).sub_(1)
    # Padding (the number of nodes below) lands on num_parents, which no look-up below may reach.
    last = torch.searchsorted(parents_BE, parents_BE, right=True)
    first = torch.searchsorted(parents_BE, parents_BE)
    node_BE = parents_BE.clamp(max=num_parents - 1)
    num_children_BE = child_offsets[node_BE + 1] - child_offsets[node_BE]
    all_dead_BE = (last - first == num_children_BE) & (parents_BE < num_parents)
    return _sort_distinct(parents_BE.masked_fill(~all_dead_BE, num_parents), num_parents)


def _sort_distinct(values_BE: Tensor, padding: int) -> Tensor:
    """Rows sorted, repeats turned into padding, and columns of nothing but padding cut off."""
    values_BE = values_BE.sort(dim=1).values
    values_BE[:, 1:].masked_fill_(values_BE[:, 1:] == values_BE[:, :-1], padding)
    values_BE = values_BE.sort(dim=1).values
    width = int((values_BE < padding).sum(dim=1).max()) if values_BE.numel() else 0
    return values_BE[:, :width].contiguous()


def _narrowest_type(num_codes: int) -> type[np.integer]:
    if num_codes <= 2**8:
        return np.uint8
    return np.int16 if num_codes <= 2**15 else np.int32


def _check_table(codes_NL: np.ndarray, sizes: tuple[int, ...], ranks_N: np.ndarray) -> None:
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"codes_per_level: found {list(sizes)}, expected at least one level of at least one code.")
    if codes_NL.ndim != 2 or codes_NL.shape[1] != len(sizes) or len(codes_NL) == 0:
        raise DataError(
            f"ID table: found shape {codes_NL.shape}, expected (items, {len(sizes)}) with at least one item. "
            "Build the trie from the table of this tokenizer."
        )
    if not np.issubdtype(codes_NL.dtype, np.integer):
        raise DataError(f"ID table: found {codes_NL.dtype} codes, expected integers.")
    outside_NL = (codes_NL < 0) | (codes_NL >= np.asarray(sizes))
    if outside_NL.any():
        item, level = np.argwhere(outside_NL)[0]
        raise DataError(
            f"ID table: {int(outside_NL.sum())} codes are out of range; first: item {item}, level {level}, found "
            f"{codes_NL[item, level]}, expected 0 to {sizes[level] - 1}. Check codes_per_level against the table."
        )
    if ranks_N.shape != (len(codes_NL),):
        raise DataError(f"bucket ranks: found shape {ranks_N.shape}, expected {(len(codes_NL),)}, one an item.")


def _check_shared(codes_NL: np.ndarray, item_of_rank: np.ndarray, begins_N: np.ndarray, ranks_N: np.ndarray) -> None:
    sorted_ranks_N = ranks_N[item_of_rank]
    clashes = np.flatnonzero(~begins_N[1:] & (sorted_ranks_N[1:] == sorted_ranks_N[:-1]))
    if len(clashes) == 0:
        return
    one, other = item_of_rank[clashes[0]], item_of_rank[clashes[0] + 1]
    raise DataError(
        f"ID table: {len(clashes)} items share codes and bucket rank with another; first: items {one} and {other}, "
        f"codes {codes_NL[one].tolist()}. Resolve collisions (policy suffix or reassign), or give bucket ranks."
    )
