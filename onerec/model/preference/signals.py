"""What the log says of an event, column by column: labels for the towers, bins for those who read it in a history.

Every column has one yes-or-no question, so that the towers are one family and the P-Score has labels of one kind:

    binary   did it happen?        count     did it happen at all?
    seconds  was it a long view?   rating    was it a good one?       both: at least the training median

Shapes: N events, T towers.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from onerec.data.settings import FeedbackKind
from onerec.errors import ConfigError, DataError, suggest_nearest

CHOSEN = "chosen"
"""Tower that tells an event's item from random ones."""


class Signal(BaseModel):
    """A feedback column as towers and histories read it."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: FeedbackKind
    positive_from: float  # the least value whose answer is yes
    is_good: bool  # whether a yes speaks for the item
    mean: float  # of the training values
    bounds: tuple[float, ...]  # values from which the bins after the first begin
    pscore_weight: float

    @property
    def num_bins(self) -> int:
        """Bins of a value in a history, one for `not recorded` included."""
        return len(self.bounds) + 2

    def labels(self, values: np.ndarray) -> np.ndarray:
        """1 for a yes, 0 for a no, NaN where nothing was recorded."""
        return np.where(np.isnan(values), np.nan, values >= self.positive_from)

    def bins(self, values: np.ndarray) -> np.ndarray:
        """Number of each value's bin; 0 where nothing was recorded."""
        return np.where(np.isnan(values), 0, 1 + np.searchsorted(self.bounds, values, side="right"))


def require_known(key: str, names: Sequence[str] | Mapping[str, object], known: Sequence[str]) -> None:
    """Refuse names that are none of the known ones.

    Raises:
        ConfigError: with the nearest name.
    """
    for name in names:
        if name not in known:
            raise ConfigError(f"{key}: no tower {name!r}.{suggest_nearest(name, known)} Towers: {', '.join(known)}.")


def feedback_values(signals: Sequence[Signal], feedback: Mapping[str, np.ndarray], num_events: int) -> np.ndarray:
    """What each tower learns from each event: float32 (N, T), NaN where not recorded.

    Raises:
        DataError: the events lack a column.
    """
    values_NT = np.empty((num_events, len(signals)), dtype=np.float32)
    for tower, signal in enumerate(signals):
        if signal.name == CHOSEN:
            values_NT[:, tower] = 1.0
            continue
        if signal.name not in feedback:
            raise DataError(
                f"reward model: these events have no feedback column {signal.name!r}, which it reads; found "
                f"{', '.join(feedback) or 'none'}. Use a reward model of this log, or add the column."
            )
        values_NT[:, tower] = feedback[signal.name]
    return values_NT
