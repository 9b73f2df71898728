"""What a trie is built from: an ID table, checked and put in order.

Shapes: N items, L code levels.
"""

import math

import numpy as np

from tokenizer.errors import ConfigError, DataError


def sort_items(columns: list[np.ndarray], sizes: tuple[int, ...], ranks_N: np.ndarray) -> np.ndarray:
    """Items in the order of their codes, then ranks: by one number an item where 63 bits hold it, which is faster."""
    least, most = int(ranks_N.min()), int(ranks_N.max())
    digits = [*zip(columns, sizes, strict=True), (ranks_N - least, most - least + 1)]
    if math.prod(size for _, size in digits) >= 2**63:
        return np.lexsort([ranks_N, *reversed(columns)])
    keys_N = np.zeros(len(ranks_N), dtype=np.int64)
    for column, size in digits:
        keys_N = keys_N * size + column
    return np.argsort(keys_N, kind="stable")


def narrowest_type(num_codes: int) -> type[np.integer]:
    """The smallest type that holds the codes of a level and that torch can index with."""
    if num_codes <= 2**8:
        return np.uint8
    return np.int16 if num_codes <= 2**15 else np.int32


def check_table(codes_NL: np.ndarray, sizes: tuple[int, ...], ranks_N: np.ndarray) -> None:
    """Refuse codes of another shape, type or range, with ConfigError or DataError."""
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


def cut_levels(
    columns: list[np.ndarray], item_of_rank: np.ndarray, ranks_N: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of each level, where the children of the nodes above begin, and the codes of its own nodes.

    Raises:
        DataError: items of equal codes and bucket rank.
    """
    starts_above = np.zeros(1, dtype=np.int64)  # first rank of every node of the level above; the root at first
    begins_N = np.zeros(len(item_of_rank), dtype=bool)  # a prefix begins at this rank
    begins_N[0] = True
    offsets, codes = [], []
    for level, column in enumerate(columns):
        sorted_N = column[item_of_rank]
        begins_N[1:] |= sorted_N[1:] != sorted_N[:-1]
        starts = np.flatnonzero(begins_N)
        if level == len(columns) - 1:
            _require_distinct(columns, item_of_rank, begins_N, ranks_N)
            starts = np.arange(len(item_of_rank))
        offsets.append(np.append(np.searchsorted(starts, starts_above), len(starts)).astype(np.int32))
        codes.append(sorted_N[starts])
        starts_above = starts
    return offsets, codes


def _require_distinct(
    columns: list[np.ndarray], item_of_rank: np.ndarray, begins_N: np.ndarray, ranks_N: np.ndarray
) -> None:
    """Refuse items of equal codes and rank; other codes than before begin at the places `begins_N` of the order."""
    sorted_ranks_N = ranks_N[item_of_rank]
    clashes = np.flatnonzero(~begins_N[1:] & (sorted_ranks_N[1:] == sorted_ranks_N[:-1]))
    if len(clashes) == 0:
        return
    one, other = item_of_rank[clashes[0]], item_of_rank[clashes[0] + 1]
    raise DataError(
        f"ID table: {len(clashes)} items share codes and bucket rank with another; first: items {one} and {other}, "
        f"codes {[int(column[one]) for column in columns]}. Resolve collisions (policy suffix or reassign), or give "
        "bucket ranks."
    )
