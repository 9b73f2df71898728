"""What happens to items with equal codes.

- `suffix`: one more level holds the rank among items of equal codes (TIGER, Rajput et al. 2023, section 3.1). A
  bucket larger than the suffix level sends its last items to the nearest codes with room.
- `reassign`: every item has its own codes; all but the first of a bucket go to the nearest free codes.
- `bucket`: codes stay shared; the rank among items of equal codes orders them.

"First", "rank" and "order" always mean: more training events first, then the lower item index.

"Nearest with room": of the last level's codes under the item's own prefix the nearest with room; where that prefix is
full, the levels are walked as residual quantisation does, passing over codes below which everything is taken. It
always succeeds while room is left anywhere.

Legend: N items, M items to be moved, L levels, K codes a level, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from tqdm import tqdm

from tokenizer.config import CollisionSettings
from tokenizer.errors import DataError
from tokenizer.table import pack_codes

_CHUNK_ITEMS = 4096  # items whose distances to a codebook are held at once


class LatentsOf(Protocol):
    """Latents of some items, float32 (M, D), fetched in chunks so that they need not be in memory at once."""

    def __call__(self, rows_M: np.ndarray) -> torch.Tensor: ...


@dataclass(frozen=True)
class Resolution:
    """Codes after the policy: with the suffix level where there is one, and the ranks in buckets."""

    codes_NL: np.ndarray
    codes_per_level: tuple[int, ...]
    bucket_rank_N: np.ndarray
    num_moved: int


def resolve_collisions(
    codes_NL: np.ndarray,
    codebooks: Sequence[torch.Tensor],
    latents_of: LatentsOf,
    popularity_N: np.ndarray,
    settings: CollisionSettings,
) -> Resolution:
    """Apply `settings.policy` to fitted codes.

    Raises:
        DataError: unique IDs are asked for and the catalogue is larger than the code space.
    """
    sizes = tuple(len(codebook) for codebook in codebooks)
    largest = CollisionCounts.of(codes_NL, sizes).largest_bucket
    capacity = {"suffix": settings.suffix_codes or 2 * largest, "reassign": 1, "bucket": largest}[settings.policy]
    return place_items(codes_NL, codebooks, latents_of, popularity_N, capacity, settings.policy)


def place_items(
    codes_NL: np.ndarray,
    codebooks: Sequence[torch.Tensor],
    latents_of: LatentsOf,
    popularity_N: np.ndarray,
    capacity: int,
    policy: str,
    placed_codes_PL: np.ndarray | None = None,
    placed_ranks_P: np.ndarray | None = None,
) -> Resolution:
    """Give every item codes that at most `capacity` items share; items already placed (P of them) keep theirs.

    Ranks within equal codes become the suffix level or the bucket ranks, as the policy has it.

    Raises:
        DataError: more items than places.
    """
    sizes = tuple(len(codebook) for codebook in codebooks)
    occupancy = _Occupancy(sizes, capacity)
    if placed_codes_PL is not None and placed_ranks_P is not None:
        occupancy.take(pack_codes(placed_codes_PL, sizes), placed_ranks_P)
    _require_room(len(codes_NL), occupancy)
    codes_NL = codes_NL.astype(np.int32).copy()
    keys_N = pack_codes(codes_NL, sizes)
    ranks_N = (occupancy.counts_of(keys_N) + bucket_ranks(keys_N, popularity_N)).astype(np.int32)
    stays_N = ranks_N < capacity
    occupancy.take(keys_N[stays_N], ranks_N[stays_N])
    movers_M = np.flatnonzero(~stays_N)
    movers_M = movers_M[np.lexsort((movers_M, -popularity_N[movers_M]))]
    num_moved = len(movers_M)
    _move(movers_M, codes_NL, ranks_N, codebooks, latents_of, occupancy)
    if policy == "bucket":
        return Resolution(codes_NL, sizes, ranks_N, num_moved)
    if policy == "suffix":
        codes_NL, sizes = np.concatenate([codes_NL, ranks_N[:, None]], axis=1), (*sizes, capacity)
    return Resolution(codes_NL, sizes, np.zeros_like(ranks_N), num_moved)


def bucket_ranks(keys_N: np.ndarray, popularity_N: np.ndarray) -> np.ndarray:
    """Rank of every item among those of an equal key: more popular first, then the lower index; int32 (N,)."""
    order = np.lexsort((np.arange(len(keys_N)), -popularity_N, keys_N))
    sorted_keys = keys_N[order]
    places = np.arange(len(keys_N))
    starts = np.maximum.accumulate(np.where(np.r_[True, sorted_keys[1:] != sorted_keys[:-1]], places, 0)[: len(places)])
    ranks_N = np.empty(len(keys_N), dtype=np.int32)
    ranks_N[order] = places - starts
    return ranks_N


@dataclass(frozen=True)
class CollisionCounts:
    """How many items share their codes."""

    num_items: int
    num_distinct: int
    num_colliding: int  # items that share their codes with another
    largest_bucket: int
    bucket_sizes: np.ndarray  # items of every distinct semantic ID

    @classmethod
    def of(cls, codes_NL: np.ndarray, codes_per_level: Sequence[int]) -> "CollisionCounts":
        """Count over codes (N, L)."""
        _, sizes = np.unique(pack_codes(codes_NL, codes_per_level), return_counts=True)
        return cls(len(codes_NL), len(sizes), int(sizes[sizes > 1].sum()), int(sizes.max(initial=0)), sizes)


class _Occupancy:
    """How many places of each semantic ID are taken, as sorted arrays."""

    def __init__(self, sizes: Sequence[int], capacity: int) -> None:
        self.sizes = tuple(sizes)
        self.capacity = capacity
        self._keys = np.empty(0, dtype=np.int64)
        self._counts = np.empty(0, dtype=np.int64)

    @property
    def num_free(self) -> int:
        """Places left in the whole code space."""
        return math.prod(self.sizes) * self.capacity - int(self._counts.sum())

    def take(self, keys: np.ndarray, ranks: np.ndarray) -> None:
        """Mark the places 0..rank of every key as taken."""
        all_keys = np.concatenate([self._keys, keys])
        all_counts = np.concatenate([self._counts, ranks.astype(np.int64) + 1])
        order = np.lexsort((all_counts, all_keys))
        all_keys, all_counts = all_keys[order], all_counts[order]
        is_last = np.r_[all_keys[1:] != all_keys[:-1], True][: len(all_keys)]
        self._keys, self._counts = all_keys[is_last], all_counts[is_last]

    def counts_of(self, keys: np.ndarray) -> np.ndarray:
        """Places taken of every key."""
        if not len(self._keys):
            return np.zeros(len(keys), dtype=np.int64)
        found = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return np.where(self._keys[found] == keys, self._counts[found], 0)

    def counts_under(self, prefix: int) -> np.ndarray:
        """Places taken of every last code under a prefix of all levels but the last, int64 (K,)."""
        size = self.sizes[-1]
        first, last = np.searchsorted(self._keys, [prefix * size, (prefix + 1) * size])
        counts_K = np.zeros(size, dtype=np.int64)
        counts_K[self._keys[first:last] - prefix * size] = self._counts[first:last]
        return counts_K

    def full_prefixes(self, level: int) -> np.ndarray:
        """Sorted keys of the prefixes up to and with `level` under which no place is free."""
        below = math.prod(self.sizes[level + 1 :])
        prefixes, inverse = np.unique(self._keys // below, return_inverse=True)
        return prefixes[np.bincount(inverse, weights=self._counts, minlength=len(prefixes)) >= below * self.capacity]


def _require_room(num_items: int, occupancy: _Occupancy) -> None:
    if num_items > occupancy.num_free:
        sizes = " x ".join(str(size) for size in occupancy.sizes)
        raise DataError(
            f"catalogue: found {num_items} items for {occupancy.num_free} free places in {sizes} codes with "
            f"{occupancy.capacity} item(s) each. Raise tokenizer.quantizer.codes_per_level, give more levels, or "
            "choose the policy 'bucket'."
        )


def _move(
    movers_M: np.ndarray,
    codes_NL: np.ndarray,
    ranks_N: np.ndarray,
    codebooks: Sequence[torch.Tensor],
    latents_of: LatentsOf,
    occupancy: _Occupancy,
) -> None:
    """Give the movers, which come in order of priority, the nearest codes with room; writes codes and ranks."""
    sizes = occupancy.sizes
    prefixes_M = pack_codes(codes_NL[movers_M, :-1], sizes[:-1])
    bar = tqdm(total=len(movers_M), desc="collisions", unit="item", leave=False, disable=len(movers_M) < 2)
    with bar as progress:
        while len(movers_M):
            placed_M = np.zeros(len(movers_M), dtype=bool)
            order = np.argsort(prefixes_M, kind="stable")
            starts = np.flatnonzero(np.r_[True, np.diff(prefixes_M[order]) != 0])
            for group in np.split(order, starts[1:]):
                items = movers_M[group]
                codes_m, ranks_m = _choose_in_prefix(
                    items, codes_NL, codebooks, latents_of, occupancy, prefixes_M[group[0]]
                )
                codes_NL[items[: len(codes_m)], -1] = codes_m
                ranks_N[items[: len(codes_m)]] = ranks_m
                placed_M[group[: len(codes_m)]] = True
            done = movers_M[placed_M]
            occupancy.take(pack_codes(codes_NL[done], sizes), ranks_N[done])
            progress.update(len(done))
            movers_M = movers_M[~placed_M]
            prefixes_M = _descend(movers_M, codes_NL, codebooks, latents_of, occupancy)


def _choose_in_prefix(
    items: np.ndarray,
    codes_NL: np.ndarray,
    codebooks: Sequence[torch.Tensor],
    latents_of: LatentsOf,
    occupancy: _Occupancy,
    prefix: int,
) -> tuple[list[int], list[int]]:
    """Last codes and ranks of as many of `items`, in order, as the prefix has room for."""
    free_K = occupancy.capacity - occupancy.counts_under(int(prefix))
    codes: list[int] = []
    ranks: list[int] = []
    items = items[: int(free_K.sum())]
    for start in range(0, len(items), _CHUNK_ITEMS):
        part = items[start : start + _CHUNK_ITEMS]
        residual_mD = latents_of(part)
        for level, codebook in enumerate(codebooks[:-1]):
            residual_mD = residual_mD - codebook[codes_NL[part, level].astype(np.int64)]
        for distances_K in _distances(residual_mD, codebooks[-1]):
            code = int(np.where(free_K > 0, distances_K, np.inf).argmin())
            codes.append(code)
            ranks.append(int(occupancy.capacity - free_K[code]))
            free_K[code] -= 1
    return codes, ranks


def _descend(
    movers_M: np.ndarray,
    codes_NL: np.ndarray,
    codebooks: Sequence[torch.Tensor],
    latents_of: LatentsOf,
    occupancy: _Occupancy,
) -> np.ndarray:
    """Prefix keys of the nearest prefixes that have room, int64 (M,); writes their codes."""
    prefixes_M = np.zeros(len(movers_M), dtype=np.int64)
    full_by_level = [occupancy.full_prefixes(level) for level in range(len(codebooks) - 1)] if len(movers_M) else []
    for start in range(0, len(movers_M), _CHUNK_ITEMS):
        part = movers_M[start : start + _CHUNK_ITEMS]
        prefixes_m = np.zeros(len(part), dtype=np.int64)
        residual_mD = latents_of(part)
        for level, full in enumerate(full_by_level):
            size = occupancy.sizes[level]
            distances_mK = _distances(residual_mD, codebooks[level])
            first, last = np.searchsorted(full, [prefixes_m * size, (prefixes_m + 1) * size])
            rows = np.repeat(np.arange(len(part)), last - first)
            offsets = np.arange(len(rows)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
            distances_mK[rows, full[np.repeat(first, last - first) + offsets] - prefixes_m[rows] * size] = np.inf
            codes_m = distances_mK.argmin(axis=1)
            codes_NL[part, level] = codes_m
            prefixes_m = prefixes_m * size + codes_m
            residual_mD = residual_mD - codebooks[level][codes_m]
        prefixes_M[start : start + _CHUNK_ITEMS] = prefixes_m
    return prefixes_M


def _distances(rows_mD: torch.Tensor, codebook_KD: torch.Tensor) -> np.ndarray:
    """Squared distances less |row|^2, float32 (m, K)."""
    return torch.addmm(codebook_KD.square().sum(dim=1), rows_mD, codebook_KD.T, alpha=-2.0).numpy()
