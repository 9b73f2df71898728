"""Which training events the reward model learns from, is stopped by, and is reported on.

Shapes: U users, N events of the log.
"""

from dataclasses import dataclass

import numpy as np

from onerec.data.histories import Histories, Split
from onerec.data.settings import SplitSettings
from onerec.data.splits import split_by_time
from onerec.errors import DataError
from rl.preference.settings import RewardModelSettings


@dataclass(frozen=True)
class ExampleRows:
    """Rows of the examples to train on, to stop by and to report on: earlier, later and latest ones."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_rows(training: Histories, has_time: bool, settings: RewardModelSettings) -> ExampleRows:
    """Cut the training events at two moments that hold for all users.

    Where only an order is known, a moment is the share of its user's events that came before.

    Raises:
        DataError: a part is left without events.
    """
    moments = np.asarray(training.timestamps) if has_time else _shares_before(training.offsets)
    shares = {"validation_fraction": settings.validation_share, "test_fraction": settings.test_share}
    labels = split_by_time(moments, SplitSettings(kind="global_time", **shares))
    rows = ExampleRows(*(np.flatnonzero(labels == split) for split in Split))
    if not (len(rows.train) and len(rows.validation) and len(rows.test)):
        raise DataError(
            f"reward: the training events fall into {len(rows.train)} to train on, {len(rows.validation)} to stop by "
            f"and {len(rows.test)} held out, expected some of each. Change reward.validation_share or test_share."
        )
    return rows


def _shares_before(offsets: np.ndarray) -> np.ndarray:
    lengths_U = np.diff(offsets)
    places_N = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths_U)
    return places_N / np.repeat(lengths_U, lengths_U)
