"""Swing: two items are similar where many pairs of users share both of them and little else.

Yang et al., "Large Scale Product Graph Construction for Recommendation in E-commerce" (2020, arXiv 2010.05525), section
2.1, equation 2 and algorithm 1:

    s(i, j) = sum over pairs of users {u, v} who both met i and j of  w_u w_v / (alpha + |I_u & I_v|)

with I_u the set of items that u met, u and v different, and w_u = 1/sqrt(|I_u|). Choices:
1. A pair of users counts once, not in both orders: half of the double sum, of the same ranking.
2. An item of more than `max_users_per_item` users counts those who come first in one seeded order of all users. The
   order is the same for every item, so that pairs of users stay whole; weights and overlaps are those of all events.
3. |I_u & I_v| has i itself in it, as in the equation. The paper's worked example counts the others alone, which is an
   alpha less by 1.

Legend: N items, U users, P pairs of users with two items or more in common.
"""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from tqdm import tqdm

from tokenizer.config import SwingSettings
from tokenizer.sequences import Sequences

logger = logging.getLogger(__name__)
_BLOCK_MEETINGS = 4_000_000  # (user, user, item) meetings held at once


@dataclass(frozen=True)
class Swing:
    """Similarities, and what the cap on users left out.

    Args:
        similarity_NN: float64 (N, N), symmetric, nothing on the diagonal.
        capped_items: items with more users than were counted.
        left_out: (user, item) meetings that were not counted.
    """

    similarity_NN: scipy.sparse.csr_array
    capped_items: int
    left_out: int

    def neighbours(self, count: int) -> np.ndarray:
        """Pairs (item, one of its `count` most similar items), int64 (pairs, 2); of equals the lower index first."""
        entries = self.similarity_NN.tocoo()
        order = np.lexsort((entries.col, -entries.data, entries.row))
        rows, columns = entries.row[order].astype(np.int64), entries.col[order].astype(np.int64)
        rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
        return np.stack([rows, columns], axis=1)[rank < count]


def swing_similarity(sequences: Sequences, num_items: int, settings: SwingSettings, seed: int) -> Swing:
    """Similarities of all items, exact but for the cap on users an item.

    Raises:
        DataError: an item index outside the catalogue.
    """
    met_UN = met_items(sequences, num_items)
    counted_UN = _cap_users(met_UN, settings.max_users_per_item, seed)
    left_out = met_UN.nnz - counted_UN.nnz
    capped_items = int((met_UN.sum(axis=0) > settings.max_users_per_item).sum())
    if left_out:
        logger.warning(
            "swing: %d items have more than %d users; %d of %d (user, item) meetings are not counted",
            capped_items,
            settings.max_users_per_item,
            left_out,
            met_UN.nnz,
        )
    num_met_U = np.maximum(met_UN.sum(axis=1), 1)  # users without a training event are in no pair
    weight_U = num_met_U**-settings.user_power
    total_NN = scipy.sparse.csr_array((num_items, num_items), dtype=np.float64)
    for first_P, second_P in _user_pairs(counted_UN):
        shared_PN = counted_UN[first_P].multiply(counted_UN[second_P]).tocsr()
        overlap_P = met_UN[first_P].multiply(met_UN[second_P]).sum(axis=1)
        strength_P = weight_U[first_P] * weight_U[second_P] / (settings.alpha + overlap_P)
        total_NN = total_NN + shared_PN.T @ (scipy.sparse.diags_array(strength_P) @ shared_PN)
    total_NN.setdiag(0)
    total_NN.eliminate_zeros()
    return Swing(total_NN, capped_items, left_out)


def met_items(sequences: Sequences, num_items: int) -> scipy.sparse.csr_array:
    """float64 (U, N): 1 where a user met an item, however often."""
    sequences.item_counts(num_items)  # checks the range
    users = np.repeat(np.arange(len(sequences.offsets) - 1), np.diff(sequences.offsets))
    shape = (len(sequences.offsets) - 1, num_items)
    met_UN = scipy.sparse.csr_array((np.ones(len(users)), (users, sequences.items)), shape=shape)
    met_UN.sum_duplicates()
    met_UN.data[:] = 1
    return met_UN


def _cap_users(met_UN: scipy.sparse.csr_array, max_users: int, seed: int) -> scipy.sparse.csr_array:
    place_U = np.random.default_rng(seed).permutation(met_UN.shape[0])
    entries = met_UN.tocoo()
    order = np.lexsort((place_U[entries.row], entries.col))
    users, items = entries.row[order], entries.col[order]
    rank = np.arange(len(items)) - np.searchsorted(items, items)
    kept = rank < max_users
    return scipy.sparse.csr_array((np.ones(int(kept.sum())), (users[kept], items[kept])), shape=met_UN.shape)


def _user_pairs(met_UN: scipy.sparse.csr_array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Users (P,), (P,) with two items or more in common, each pair once, a block of first users at a time."""
    meetings_U = np.cumsum(met_UN @ met_UN.sum(axis=0))
    ends = np.flatnonzero(np.diff(meetings_U // _BLOCK_MEETINGS, prepend=0))
    bounds = np.unique([0, *ends, met_UN.shape[0]])
    for start, end in tqdm(list(itertools.pairwise(bounds)), desc="swing", leave=False, disable=None):
        common = (met_UN[start:end] @ met_UN.T).tocoo()
        first, second = common.row + start, common.col
        is_pair = (second > first) & (common.data >= 2)
        yield first[is_pair], second[is_pair]
