"""Duration-aware advantage of OneRec-V2 (arXiv 2508.20900): from the log itself, no reward model.

    bucket of a video    F(d) = floor(log_beta(d + epsilon)),  d its duration in seconds
    percentile           q = share of the same user's past play times in the same bucket below this one, equal ones half
    advantage            +1 if q is in the top quarter of the batch and nothing speaks against it; -1 on an explicit
                         dislike; else 0.  Not normalised.

Departures, where the paper is silent:
1. An event without a past in its bucket has no percentile and gets 0 (or -1).
2. Those at the very quantile that bounds the top share belong to it.

Shapes: N events in each user's order of time, M events of a batch.
"""

from bisect import bisect_left, bisect_right, insort
from itertools import pairwise

import numpy as np
from pydantic import Field

from onerec.errors import DataError
from tokenizer.settings import Settings


class FeedbackSettings(Settings):
    """Which columns the duration-aware advantage reads, and where it draws its lines."""

    watch_column: str = Field("watch_seconds", description="feedback column: seconds watched")
    duration_column: str = Field("duration_seconds", description="feedback column: seconds the item lasts")
    dislike_column: str | None = Field(None, description="feedback column: above 0 is an explicit dislike; null: none")
    bucket_base: float = Field(2.0, gt=1, description="beta of the duration buckets (the paper gives no number)")
    bucket_offset: float = Field(1.0, gt=0, description="epsilon of the duration buckets, in seconds (likewise)")
    top_share: float = Field(0.25, gt=0, lt=1, description="share of a batch's percentiles that is good (V2: 0.25)")


def log_percentiles(offsets: np.ndarray, feedback: dict[str, np.ndarray], settings: FeedbackSettings) -> np.ndarray:
    """Percentile (N,) of every event's play time among its user's past ones in its bucket; NaN without a past.

    Args:
        offsets: int64 (U+1,); user u's events are rows offsets[u]:offsets[u+1], oldest first.
        feedback: column -> (N,), NaN where not recorded.

    Raises:
        DataError: a column is missing or constant, or a duration is negative.
    """
    watched_N = require_column(feedback, settings.watch_column)
    duration_N = require_column(feedback, settings.duration_column)
    if np.nanmin(duration_N) < 0:
        raise DataError(f"feedback {settings.duration_column!r}: found {np.nanmin(duration_N):g}, expected 0 or more.")
    buckets_N = duration_buckets(duration_N, settings.bucket_base, settings.bucket_offset)
    return past_percentiles(offsets, watched_N, buckets_N)


def duration_buckets(durations_N: np.ndarray, base: float, offset: float) -> np.ndarray:
    """floor(log_base(duration + offset)) (N,), NaN where the duration is."""
    return np.floor(np.log(durations_N.astype(np.float64) + offset) / np.log(base))


def past_percentiles(offsets: np.ndarray, watched_N: np.ndarray, buckets_N: np.ndarray) -> np.ndarray:
    """Share of the user's earlier play times in the same bucket that lie below each one, equal ones counted half."""
    percentiles_N = np.full(len(watched_N), np.nan)
    recorded_N = ~(np.isnan(watched_N) | np.isnan(buckets_N))
    for first, stop in pairwise(offsets.tolist()):
        pasts: dict[float, list[float]] = {}
        for row in (first + np.flatnonzero(recorded_N[first:stop])).tolist():
            past, watched = pasts.setdefault(float(buckets_N[row]), []), float(watched_N[row])
            if past:
                below, not_above = bisect_left(past, watched), bisect_right(past, watched)
                percentiles_N[row] = (below + not_above) / (2 * len(past))
            insort(past, watched)
    return percentiles_N


def duration_aware_advantages(
    percentiles_M: np.ndarray, dislikes_M: np.ndarray, top_share: float = FeedbackSettings().top_share
) -> np.ndarray:
    """Advantages +1, 0 or -1 of the events of one batch. float32 (M,)."""
    known = ~np.isnan(percentiles_M)
    if not known.any():
        return np.where(dislikes_M, -1.0, 0.0).astype(np.float32)
    bound = np.quantile(percentiles_M[known], 1 - top_share)
    good_M = known & (np.nan_to_num(percentiles_M) >= bound)
    return np.where(dislikes_M, -1.0, np.where(good_M, 1.0, 0.0)).astype(np.float32)


def require_column(feedback: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A feedback column that says something.

    Raises:
        DataError: no such column, nothing recorded, or one value everywhere.
    """
    if name not in feedback:
        raise DataError(f"feedback: found no column {name!r}, expected one of {', '.join(feedback) or 'none'}.")
    values = feedback[name][~np.isnan(feedback[name])]
    if not len(values) or values.min() == values.max():
        found = f"the value {values[0]:g} everywhere" if len(values) else "nothing recorded"
        raise DataError(f"feedback {name!r}: found {found}, expected values that differ. It cannot tell good from bad.")
    return feedback[name]
