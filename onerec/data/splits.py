"""Training, validation and test labels for a log sorted by user and time."""

import numpy as np
import polars as pl

from onerec.data.histories import Split
from onerec.data.settings import SplitSettings
from onerec.errors import ConfigError, DataError

_MIN_EVENTS_TO_LEAVE_OUT = 3  # one to train on, one for validation, one for test


def assert_order(offsets: np.ndarray, moments: np.ndarray) -> None:
    """Our invariant: within each user moments never decrease."""
    falls = np.flatnonzero(moments[1:] < moments[:-1]) + 1
    outside = falls[~np.isin(falls, offsets)]
    assert not len(outside), f"moments decrease within a user at {len(outside)} rows, first at row {outside[0]}"


def leave_one_out(offsets: np.ndarray) -> tuple[np.ndarray, int]:
    """Last event of a user is test, the one before validation, the rest training.

    Args:
        offsets: int64 (U+1,).

    Returns:
        labels uint8 (N,), and how many users have too few events (under 3) and stay whole in training.
    """
    lengths = np.diff(offsets)
    ends = offsets[1:][lengths >= _MIN_EVENTS_TO_LEAVE_OUT]
    labels = np.full(offsets[-1], Split.TRAIN, dtype=np.uint8)
    labels[ends - 1] = Split.TEST
    labels[ends - 2] = Split.VALIDATION
    return labels, len(lengths) - len(ends)


def split_by_time(seconds: np.ndarray, settings: SplitSettings) -> np.ndarray:
    """Label by two moments that hold for all users: given dates, or those that cut off the given shares of events.

    Events at the very moment of a cut fall after it, so that no moment is on both sides.

    Args:
        seconds: (N,) Unix seconds of each event, in any order.

    Returns:
        labels uint8 (N,).
    """
    if settings.validation_from and settings.test_from:
        cuts = (settings.validation_from.timestamp(), settings.test_from.timestamp())
    else:
        shares = (settings.test_fraction + settings.validation_fraction, settings.test_fraction)
        ranks = [min(round(len(seconds) * (1 - share)), len(seconds) - 1) for share in shares]
        validation_cut, test_cut = np.partition(seconds, ranks)[ranks]
        cuts = (validation_cut, test_cut)
    labels = np.zeros(len(seconds), dtype=np.uint8)
    labels[seconds >= cuts[0]] = Split.VALIDATION
    labels[seconds >= cuts[1]] = Split.TEST
    return labels


def split_by_column(column: pl.Series, settings: SplitSettings) -> np.ndarray:
    """Label by a published split column.

    Raises:
        DataError: a null, or a label that `data.split.labels` does not map.
    """
    mapping = {label: int(Split[name.upper()]) for label, name in settings.labels.items()}
    labels = column.replace_strict(mapping, default=None, return_dtype=pl.UInt8)
    if labels.null_count():
        unknown = column.filter(labels.is_null())
        raise DataError(
            f"events: {len(unknown):,} split labels are none of {', '.join(map(repr, mapping))}; found "
            f"{', '.join(map(repr, unknown.unique().sort().head(5)))}. Map them under data.split.labels."
        )
    return labels.to_numpy()


def split_events(
    offsets: np.ndarray, seconds: np.ndarray | None, column: pl.Series | None, settings: SplitSettings
) -> tuple[np.ndarray, list[str]]:
    """Label every event of a log sorted by user and time.

    Args:
        offsets: int64 (U+1,).
        seconds: (N,) Unix seconds, None where only the order is known.
        column: (N,) published split labels, None without such a column.

    Returns:
        labels uint8 (N,) and notes for the report.

    Raises:
        ConfigError: the kind needs times or a column that the data lack.
    """
    if settings.kind == "leave_one_out":
        labels, num_short = leave_one_out(offsets)
        return labels, [f"split: {num_short:,} users with under 3 events stay whole in training"]
    if settings.kind == "global_time":
        if seconds is None:
            raise ConfigError(
                "data.split.kind: found global_time, but these events have an order only, no time. Use leave_one_out."
            )
        return split_by_time(seconds, settings), []
    if column is None:
        raise ConfigError(
            "data.split.kind: found column, but the events have no split column. Map data.columns.split, or use "
            "leave_one_out."
        )
    return split_by_column(column, settings), []
