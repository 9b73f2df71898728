"""What followed a recommendation, by which decoding can be asked for more of it: returns, as DT4IER (arXiv 2404.03637)
and the Decision Transformer (arXiv 2106.01345) put them before a sequence.

The return of an event in a feedback column is the mean of what was recorded from it on, over its user's next events.

Departures:
1. A return is a mean over a few events, not a sum to the end of the user's history, so that it does not grow with what
   is left of the history.
2. It stands with the start of the decoder beside the newest state of the context, not in the history before it: the
   encoder's states do not depend on it, and all targets of a pass have returns of their own.

Shapes: N events, J columns.
"""

from collections.abc import Sequence

import numpy as np

from onerec.data.histories import Histories


def returns_of(histories: Histories, columns: Sequence[str], horizon: int) -> np.ndarray:
    """The returns (N, J) float32 of every event over the `horizon` events of its user from it on; NaN where none of
    them has a record."""
    firsts_N = np.arange(histories.num_events)
    stops_N = np.minimum(firsts_N + horizon, np.asarray(histories.offsets)[histories.users_of(firsts_N) + 1])
    returns_NJ = np.empty((histories.num_events, len(columns)), dtype=np.float32)
    for place, column in enumerate(columns):
        values_N = np.asarray(histories.feedback[column], dtype=np.float64)
        recorded_N = ~np.isnan(values_N)
        sums, counts = (np.concatenate([[0.0], np.cumsum(part)]) for part in (np.nan_to_num(values_N), recorded_N))
        totals_N, numbers_N = sums[stops_N] - sums[firsts_N], counts[stops_N] - counts[firsts_N]
        returns_NJ[:, place] = np.where(numbers_N > 0, totals_N / np.maximum(numbers_N, 1), np.nan)
    return returns_NJ
