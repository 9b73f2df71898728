"""Collaborative item vectors: PPMI of co-occurrence within a window, then a truncated SVD.

Levy & Goldberg, "Neural Word Embedding as Implicit Matrix Factorization" (2014), with the smoothing and the weighting
of singular values of Levy, Goldberg & Dagan (2015). Departures:
1. A pair may count 1/distance, as in GloVe.
2. An item does not co-occur with itself.

Legend: N items, D width.
"""

import logging

import numpy as np
import scipy.sparse
from sklearn.utils.extmath import randomized_svd
from tqdm import tqdm

from tokenizer.config import CollaborativeSettings
from tokenizer.errors import DataError
from tokenizer.sequences import Sequences

logger = logging.getLogger(__name__)


def collaborative_vectors(
    sequences: Sequences, num_items: int, settings: CollaborativeSettings, seed: int
) -> np.ndarray:
    """Vectors of all items, float32 (N, D); items without a co-occurrence have a zero row.

    Raises:
        DataError: no two different items ever meet in a window, or an index outside the catalogue.
    """
    counts_NN = cooccurrences(sequences, num_items, settings.window_events, settings.decay)
    num_met = int(np.count_nonzero(np.diff(counts_NN.indptr)))
    if num_met < 2:
        raise DataError(
            "collaborative vectors: no two different items meet in a training history. "
            "Give longer histories, or set tokenizer.collaborative.weight to 0."
        )
    width = min(settings.width, num_met - 1)
    if width < settings.width:
        logger.warning(
            "collaborative vectors: width %d cut to %d, only %d items co-occur", settings.width, width, num_met
        )
    ppmi_NN = positive_pmi(counts_NN, settings.smoothing, settings.shift)
    left_ND, singular_D, _ = randomized_svd(ppmi_NN, width, n_iter=settings.iterations, random_state=seed)
    return (left_ND * singular_D**settings.singular_power).astype(np.float32)


def cooccurrences(sequences: Sequences, num_items: int, window_events: int, decay: bool) -> scipy.sparse.csr_array:
    """Symmetric float64 (N, N) counts of two different items at most `window_events` apart in one sequence."""
    sequences.item_counts(num_items)  # checks the range
    items = sequences.items.astype(np.int64)
    sequence_of_event = np.repeat(np.arange(len(sequences.offsets) - 1), np.diff(sequences.offsets))
    total = scipy.sparse.csr_array((num_items, num_items), dtype=np.float64)
    for distance in tqdm(range(1, window_events + 1), desc="co-occurrences", leave=False):
        earlier, later = items[:-distance], items[distance:]
        meets = (sequence_of_event[:-distance] == sequence_of_event[distance:]) & (earlier != later)
        weights = np.full(int(meets.sum()), 1.0 / distance if decay else 1.0)
        total = total + scipy.sparse.csr_array((weights, (earlier[meets], later[meets])), shape=total.shape)
    return (total + total.T).tocsr()


def positive_pmi(counts_NN: scipy.sparse.csr_array, smoothing: float, shift: float) -> scipy.sparse.csr_array:
    """max(0, log(P(i, c) / (P(i) P_smoothed(c))) - log shift), sparse (N, N)."""
    totals_N = np.asarray(counts_NN.sum(axis=1)).ravel()
    smoothed_N = totals_N**smoothing
    pairs = counts_NN.tocoo()
    ratio = pairs.data * smoothed_N.sum() / (totals_N[pairs.row] * smoothed_N[pairs.col])
    values = np.log(ratio) - np.log(shift)
    kept = values > 0
    return scipy.sparse.csr_array((values[kept], (pairs.row[kept], pairs.col[kept])), shape=counts_NN.shape)
