"""What a user came to later, in the training log: a reward that tells more than the very next item.

Shapes: B requests, G items of a request, N training events, V the window's events.

    reward = value of the event at which the user first meets the item among the next V events, the prompt's own the
             first of them; 0 for an item he does not meet there
    value  = 1, or the event's number in a feedback column over the column's largest

Worked example, ratings 5, 2, 4 of items a, b, c after the prompt, V = 2: a earns 1, b earns .4, c nothing.
"""

import numpy as np
from pydantic import Field, FiniteFloat, PositiveInt

from onerec.data.histories import Histories
from onerec.errors import ConfigError, DataError
from rl.rewards.feedback import require_column
from tokenizer.settings import Settings


class FutureRewardSettings(Settings):
    """The user's later events in the reward of a generated item."""

    weight: FiniteFloat = Field(1.0, description="of it in the sum of rewards")
    window_events: PositiveInt = Field(10, description="how many training events from the prompt's on may be met")
    column: str | None = Field(None, description="feedback column that values an event, 0 or more; null: each is 1")


class FutureReward:
    """Rewards by the log, for requests that are rows of it.

    Args:
        training: the training events.

    Raises:
        ConfigError: a column that does not exist.
        DataError: a column with missing or negative values, or one value everywhere.
    """

    def __init__(self, training: Histories, settings: FutureRewardSettings) -> None:
        self._items_N = np.asarray(training.items)
        self._ends = training.offsets[1:]
        self._values_N = _values(training, settings.column)
        self._window_events = settings.window_events

    def __call__(self, rows_B: np.ndarray, items_BG: np.ndarray) -> np.ndarray:
        """Reward (B, G), float32, of each item; 0 where there is none (-1)."""
        ends_B = self._ends[np.searchsorted(self._ends, rows_B, side="right")]
        places_BV = rows_B[:, None] + np.arange(self._window_events)
        inside_BV = places_BV < ends_B[:, None]
        places_BV = np.where(inside_BV, places_BV, rows_B[:, None])
        met_BGV = (items_BG[:, :, None] == self._items_N[places_BV][:, None]) & inside_BV[:, None]
        values_BG = np.take_along_axis(self._values_N[places_BV], met_BGV.argmax(axis=2), axis=1)
        return np.where(met_BGV.any(axis=2), values_BG, 0).astype(np.float32)


def _values(training: Histories, column: str | None) -> np.ndarray:
    if column is None:
        return np.ones(training.num_events, dtype=np.float32)
    if column not in training.feedback:
        known = ", ".join(sorted(training.feedback)) or "none"
        raise ConfigError(f"align.reward.future.column: found {column!r}, expected a feedback column: {known}.")
    values_N = np.asarray(training.feedback[column], dtype=np.float32)
    wrong = int((~(values_N >= 0)).sum())
    if wrong:
        raise DataError(
            f"align.reward.future.column {column!r}: found {wrong} missing or negative of {len(values_N)} values, "
            "expected 0 or more in every training event. Name another column, or none."
        )
    require_column(training.feedback, column)
    return np.asarray(values_N / values_N.max())
