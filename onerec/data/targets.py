"""Which events training predicts: how much each counts by its feedback, and targets from further ahead.

PinFM (arXiv 2507.12704) has every position predict the positive actions of a window ahead, beside the next one.
Departures:
1. Of the items in the window one is drawn anew in each epoch, instead of averaging over all of them: the same loss in
   expectation, at the price of the next event alone.
2. An event is positive if its weight by behaviour is above 0; the window begins with the next event, whatever it is.

Shapes: N training events, B windows, P targets a row.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from onerec.data.histories import Histories
from onerec.data.schema import ResolvedSchema
from onerec.data.target_settings import BehaviourWeight, FutureWindow, TargetSettings
from onerec.errors import ConfigError, DataError, suggest_nearest
from onerec.world.randomness import fold, uniform


def check_targets(settings: TargetSettings, schema: ResolvedSchema) -> None:
    """Refuse settings that the data cannot tell.

    Raises:
        ConfigError: a column that is no feedback of the schema, with the nearest, or seconds of data without them.
    """
    for rule in settings.weights:
        _require_feedback(rule.column, schema.feedback)
    if settings.future is not None and settings.future.seconds is not None and not schema.has_time:
        raise ConfigError(
            "training.targets.future.seconds: found with events without timestamps; expected events instead. Give "
            "future.events, or map the column as data.columns.timestamp."
        )


def event_weights(training: Histories, rules: Sequence[BehaviourWeight]) -> np.ndarray | None:
    """How much each training event (N,) counts as a target, float32; None where there is no rule.

    Raises:
        ConfigError: a rule about a column that is no feedback, with the nearest that is.
        DataError: nothing is left to predict.
    """
    if not rules:
        return None
    weights_N = np.ones(training.num_events, dtype=np.float32)
    for rule in rules:
        _require_feedback(rule.column, training.feedback)
        least = np.array(sorted(rule.weights))
        table = np.array([rule.otherwise, *(rule.weights[value] for value in least)], dtype=np.float32)
        values_N = np.asarray(training.feedback[rule.column], dtype=np.float64)
        reached_N = np.searchsorted(least, values_N, side="right")
        weights_N *= table[np.where(np.isnan(values_N), 0, reached_N)]
    if not weights_N.any():
        raise DataError("training.targets.weights: every event has weight 0. Give a value that events reach a weight.")
    return weights_N


@dataclass(frozen=True)
class FutureTargets:
    """Draws the rows that positions are to predict.

    The draw of a row depends on nothing but seed, epoch and row, so that processes, parts of a step and a run that was
    stopped all draw the same.

    Args:
        stops_N: the row after the last of each event's window, which begins with the event itself.
        positive_N: which events may be drawn.
    """

    stops_N: np.ndarray
    positive_N: np.ndarray
    share: float
    seed: int

    @classmethod
    def of(
        cls, training: Histories, settings: FutureWindow, weights_N: np.ndarray | None, seed: int
    ) -> "FutureTargets":
        """The windows of a log's training events."""
        rows_N = np.arange(training.num_events)
        users_N = training.users_of(rows_N)
        stops_N = np.asarray(training.offsets)[users_N + 1]
        if settings.events is not None:
            stops_N = np.minimum(stops_N, rows_N + settings.events)
        if settings.seconds is not None:
            stops_N = np.minimum(stops_N, _rows_after(training, users_N, settings.seconds))
        positive_N = np.ones(len(rows_N), dtype=bool) if weights_N is None else weights_N > 0
        return cls(stops_N, positive_N, settings.share, seed)

    def draw(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        """Rows of any shape -> rows of their windows in their place, or by share the same."""
        positives, before = np.flatnonzero(self.positive_N), np.concatenate([[0], np.cumsum(self.positive_N)])
        firsts, counts = before[rows], before[self.stops_N[rows]] - before[rows]
        keys = fold(fold(fold(0, self.seed), epoch), rows)
        chosen = firsts + np.floor(uniform(keys, 1) * counts).astype(np.int64)
        is_drawn = (uniform(keys, 0) < self.share) & (counts > 0)
        return np.where(is_drawn, positives[np.where(is_drawn, chosen, 0)], rows)


def _require_feedback(column: str, known: Collection[str]) -> None:
    if column not in known:
        raise ConfigError(
            f"training.targets.weights: found {column!r}, expected a feedback column "
            f"({', '.join(known) or 'none'}).{suggest_nearest(column, known)}"
        )


def _rows_after(training: Histories, users_N: np.ndarray, seconds: float) -> np.ndarray:
    """For each event the first row of its user that is more than so many seconds later."""
    times_N = np.asarray(training.timestamps, dtype=np.int64)
    times_N = times_N - times_N.min(initial=0)
    span = int(times_N.max(initial=0)) + 1
    latest_N = np.minimum(times_N + int(min(seconds, span)), span - 1)
    return np.searchsorted(users_N * span + times_N, users_N * span + latest_N, side="right")
