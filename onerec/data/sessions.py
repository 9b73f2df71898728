"""Sessions of an event log, and the lists that session-wise generation is trained on (OneRec v1, arXiv 2502.18965).

There, a session is what one request was answered with, five to ten videos; it becomes a training list if the user
really watched five of them, long enough in all, and reacted to some.

Departures:
1. A log of events does not tell requests apart: a session ends where nothing happens for a while.
2. What counts as watched, as time and as a reaction are columns of the schema, named in the config.
3. A list holds the first m different items watched; an item that comes again is not generated again.

Shapes: N events, X sessions, m items of a list.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from onerec.data.batches import TrainingWindows
from onerec.data.histories import Histories, Split
from onerec.data.schema import ResolvedSchema
from onerec.data.settings import SessionSettings
from onerec.errors import ConfigError, DataError, suggest_nearest


@dataclass(frozen=True)
class SessionLists:
    """The first row of some sessions, ascending, and the items to generate after what came before it."""

    rows_X: np.ndarray
    items_Xm: np.ndarray  # int64


@dataclass(frozen=True)
class HeldOutSessions:
    """Where sessions of a split begin, and the different items watched from there on, in their order."""

    rows_X: np.ndarray
    items: list[np.ndarray]


@dataclass(frozen=True)
class SessionWindows(TrainingWindows):
    """Training windows whose one target is a list: of window w the items `lists_Xm[w]`."""

    lists_Xm: np.ndarray = field(kw_only=True)

    @property
    def num_targets(self) -> int:
        """Items of all lists."""
        return int(self.lists_Xm.size)

    def collate(self, windows: np.ndarray, epoch: int = 0) -> dict[str, Any]:
        """As in the one-target form, but for `target_items` (B, 1, m)."""
        return {**super().collate(windows, epoch), "target_items": torch.from_numpy(self.lists_Xm[windows][:, None])}


def check_sessions(settings: SessionSettings, schema: ResolvedSchema) -> None:
    """Refuse rules that the data cannot tell.

    Raises:
        ConfigError: a column that is no feedback of the schema, with the nearest, or data without timestamps.
    """
    if not schema.has_time:
        raise ConfigError("data.sessions: found events without timestamps, expected them: sessions end at pauses.")
    named = {"watched": [*settings.watched], "interactions": [*settings.interactions]}
    named["seconds_column"] = [] if settings.seconds_column is None else [settings.seconds_column]
    for key, columns in named.items():
        for column in columns:
            if column not in schema.feedback:
                raise ConfigError(
                    f"data.sessions.{key}: found {column!r}, expected a feedback column of the schema "
                    f"({', '.join(schema.feedback) or 'none'}).{suggest_nearest(column, schema.feedback)}"
                )


def session_numbers(histories: Histories, pause_seconds: float) -> np.ndarray:
    """The session (N,) of each event, from 0 on: the next begins with a user, or after a longer pause."""
    begins_N = np.zeros(histories.num_events, dtype=bool)
    begins_N[histories.offsets[:-1][np.diff(histories.offsets) > 0]] = True
    begins_N[1:] |= np.diff(histories.timestamps) > pause_seconds
    return np.cumsum(begins_N) - 1


def training_lists(histories: Histories, settings: SessionSettings, num_items: int) -> SessionLists:
    """Lists of `num_items` of those sessions that are good enough to be learnt from.

    Raises:
        DataError: there is none.
    """
    sessions_N = session_numbers(histories, settings.pause_seconds)
    rows = _first_watched(histories, settings, sessions_N)
    num_sessions = int(sessions_N[-1]) + 1 if len(sessions_N) else 0
    counts_X = np.bincount(sessions_N[rows], minlength=num_sessions)
    kept_X = (counts_X >= max(settings.min_items, num_items)) & _rewarding(histories, settings, sessions_N)
    if not kept_X.any():
        raise DataError(
            f"data.sessions: found no session of {max(settings.min_items, num_items)} items watched that passes the "
            f"rules, among {num_sessions:,} sessions of training events. Loosen the rules or lower model.session_items."
        )
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts_X) - counts_X, counts_X)
    chosen = rows[(places < num_items) & kept_X[sessions_N[rows]]]
    first_rows_X = np.searchsorted(sessions_N, np.flatnonzero(kept_X))
    return SessionLists(first_rows_X, np.asarray(histories.items)[chosen].astype(np.int64).reshape(-1, num_items))


def session_windows(histories: Histories, settings: SessionSettings, num_items: int, max_items: int) -> SessionWindows:
    """One window a training list: the newest `max_items` events before the session.

    Raises:
        DataError: no session passes the rules.
    """
    training = histories.training()
    lists = training_lists(training, settings, num_items)
    firsts = training.offsets[training.users_of(lists.rows_X)]
    starts = np.maximum(firsts, lists.rows_X - max_items)
    rows = lists.rows_X
    return SessionWindows(training.items, starts, rows + 1, rows, one_target=True, lists_Xm=lists.items_Xm)


def held_out_sessions(histories: Histories, split: Split, settings: SessionSettings) -> HeldOutSessions:
    """What users watched in a split, session by session, whatever the rules say of its quality.

    A session that began earlier is told from its first event of the split on.

    Raises:
        DataError: nothing of the split was watched.
    """
    sessions_N = session_numbers(histories, settings.pause_seconds)
    in_split_N = np.asarray(histories.splits) == split
    rows = _first_watched(histories, settings, np.where(in_split_N, sessions_N, -1))
    rows = rows[in_split_N[rows]]
    if not len(rows):
        raise DataError(f"the {split.name.lower()} split holds no event that data.sessions counts as watched.")
    numbers, begins = np.unique(sessions_N[rows], return_index=True)
    split_rows = np.flatnonzero(in_split_N)
    first_rows = split_rows[np.searchsorted(sessions_N[split_rows], numbers)]
    items = np.split(np.asarray(histories.items)[rows].astype(np.int64), begins[1:])
    return HeldOutSessions(first_rows, items)


def _first_watched(histories: Histories, settings: SessionSettings, sessions_N: np.ndarray) -> np.ndarray:
    """Rows, ascending, in which an item is watched for the first time in its session."""
    watched_N = np.ones(histories.num_events, dtype=bool)
    for column, minimum in settings.watched.items():
        watched_N &= np.asarray(histories.feedback[column]) >= minimum  # false where not recorded
    rows = np.flatnonzero(watched_N)
    pairs = np.stack([sessions_N[rows], np.asarray(histories.items)[rows]], axis=1)
    _, firsts = np.unique(pairs, axis=0, return_index=True)
    return np.sort(rows[firsts])


def _rewarding(histories: Histories, settings: SessionSettings, sessions_N: np.ndarray) -> np.ndarray:
    """Which sessions (X,) lasted long enough in seconds, and hold a reaction where one is asked for."""
    num_sessions = int(sessions_N[-1]) + 1 if len(sessions_N) else 0
    kept_X = np.ones(num_sessions, dtype=bool)
    if settings.seconds_column is not None:
        seconds_N = np.nan_to_num(np.asarray(histories.feedback[settings.seconds_column], dtype=np.float64))
        kept_X &= np.bincount(sessions_N, weights=seconds_N, minlength=num_sessions) >= settings.min_seconds
    if settings.interactions:
        reacted_N = _any_positive([histories.feedback[column] for column in settings.interactions])
        kept_X &= np.bincount(sessions_N[reacted_N], minlength=num_sessions) > 0
    return kept_X


def _any_positive(columns: Sequence[np.ndarray]) -> np.ndarray:
    return np.any([np.asarray(values) > 0 for values in columns], axis=0)
