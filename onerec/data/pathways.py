"""From a user's events to what the pathways of a model read: one function for training, evaluation and serving.

The newest events are the short-term history. The positive and the lifelong pathway read the events *before* it and no
others, so every event is read once, and all targets of a pass over one short-term history share what is older than
any of them: no target can see its own or a later event. What an event of the short-term history carries is known as
soon as it has happened: its feedback, and the seconds since the event before it.

Departures from the technical report (arXiv 2506.13695, section 2.2):
1. There, the positive and the lifelong pathway also read what the short-term pathway reads.
2. Time: seconds since the event before in the short-term pathway, seconds before the oldest short-term event in the
   others. The age of an event at the moment of a request would differ from target to target of a pass.

Shapes: B requests, S short-term items, F static features, E numbers of an event, P positive events, R representatives,
V width of the vectors that cluster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onerec.data.clusters import means_of_groups, representatives
from onerec.data.features import key_of
from onerec.data.histories import Histories
from onerec.data.pathway_settings import PathwaySpec
from onerec.data.returns import returns_of
from onerec.data.tables import TIMESTAMP
from onerec.errors import DataError


@dataclass(frozen=True)
class UserEvents:
    """One user's events before a moment, oldest first, and what is known of them.

    What is left out is missing, and has a vector of its own in the model: an event without a timestamp, without a
    feedback column or with NaN in it, a user without a profile. Without its feedback no event is a positive one.

    Args:
        items: (n,) item indices.
        timestamps: (n,) Unix seconds, never decreasing; None where they are not known.
        feedback: column -> (n,) values, NaN where not recorded.
        profile: static column -> value.
        wished: column -> the return that the next item is to have, for a model that was trained with returns.

    Raises:
        DataError: not one value an item, or timestamps that descend.
    """

    items: np.ndarray
    timestamps: np.ndarray | None = None
    feedback: Mapping[str, np.ndarray] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)
    wished: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = dict(self.feedback) if self.timestamps is None else {"timestamps": self.timestamps, **self.feedback}
        for name, values in columns.items():
            if len(values) != len(self.items):
                raise DataError(
                    f"events: found {len(values)} values of {name!r} for {len(self.items)} items, expected one each. "
                    "Fill in NaN where a value is not known, or leave the column out."
                )
        if self.timestamps is not None and len(self) and np.any(self.timestamps[1:] < self.timestamps[:-1]):
            raise DataError("events: found timestamps that descend, expected the oldest event first. Sort by time.")

    def __len__(self) -> int:
        return len(self.items)


History = np.ndarray | UserEvents  # item indices, oldest first, or these with what is known of the events


def events_of(history: History) -> UserEvents:
    """A history as events; of one that is items alone nothing else is known."""
    return history if isinstance(history, UserEvents) else UserEvents(np.asarray(history))


@dataclass(frozen=True)
class EventSource:
    """The events of a log with the profiles of its users."""

    histories: Histories
    profiles: Sequence[Mapping[str, Any]]

    def before(self, row: int) -> UserEvents:
        """What its user did before the event in that row."""
        user = int(np.searchsorted(self.histories.offsets, row, side="right")) - 1
        past = slice(self.histories.offsets[user], row)
        return UserEvents(
            self.histories.items[past],
            self.histories.timestamps[past],
            {name: values[past] for name, values in self.histories.feedback.items()},
            self.profiles[user],
        )


class PathwayReader:
    """Reads requests as the tensors that a model's pathways take.

    Args:
        spec: of the model.
        vectors_NV: item vectors that the lifelong pathway clusters by.
    """

    def __init__(self, spec: PathwaySpec, vectors_NV: np.ndarray) -> None:
        self.spec = spec
        self._vectors_NV = vectors_NV

    def read(self, requests: Sequence[UserEvents], lengths_B: np.ndarray, width: int) -> dict[str, Tensor]:
        """Everything that the pathways read of the requests, right-padded.

        Args:
            lengths_B: newest events of each request that are its short-term history, one at least where there are any.
            width: S of the batch.

        Returns:
            `static_keys` (B, F) int64, `event_values` (B, S, E) float32, and for each pathway of older events
            `<name>_items`, item index + 1 with 0 in the padding, and `<name>_values`, one padded event at least; where
            the model reads them, `times` (B, S) float64 of the short-term items, NaN where they are not known, and
            `returns` (B, 1, J) float32 that are wished for, NaN where they are not.

        Raises:
            DataError: a wish that the model cannot grant.
        """
        firsts = [len(events) - int(length) for events, length in zip(requests, lengths_B, strict=True)]
        pairs = list(zip(requests, firsts, strict=True))
        settings, batch = self.spec.settings, {}
        if self.spec.static:
            keys = [[key_of(events.profile.get(feature.name)) for feature in self.spec.static] for events in requests]
            batch["static_keys"] = torch.tensor(keys, dtype=torch.int64)
        if settings.short_term is not None:
            batch["event_values"] = _pad([self._short_term(events, first) for events, first in pairs], width)
        if settings.positive is not None:
            batch |= _padded("positive", [self._positive(events, first) for events, first in pairs])
        if settings.lifelong is not None:
            batch |= _padded("lifelong", [self._lifelong(events, first) for events, first in pairs])
        if settings.times:
            batch["times"] = _times(pairs, width)
        names = [spec.name for spec in self.spec.returns]
        require_wishes(requests, names)
        if names:
            wished_BJ = [[events.wished.get(name, np.nan) for name in names] for events in requests]
            batch["returns"] = torch.tensor(wished_BJ, dtype=torch.float32)[:, None]
        return batch

    def _short_term(self, events: UserEvents, first: int) -> np.ndarray:
        seconds = np.full(len(events) - first, np.nan)
        if events.timestamps is not None:
            seconds[max(1 - first, 0) :] = np.diff(events.timestamps[max(first - 1, 0) :])
        return self._values(events, np.arange(first, len(events)), seconds)

    def _positive(self, events: UserEvents, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Items and values of the newest positive events before place `first`."""
        positive = self.spec.settings.positive
        assert positive is not None
        values = events.feedback.get(positive.column, np.zeros(0))[:first]
        places = np.flatnonzero(values >= positive.minimum)[-positive.length :]
        return np.asarray(events.items)[places], self._values(events, places, _seconds_before(events, places, first))

    def _lifelong(self, events: UserEvents, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Items of the representatives of the events before place `first`, and the values' means over each cluster."""
        lifelong = self.spec.settings.lifelong
        assert lifelong is not None
        places = np.arange(first // lifelong.refresh_events * lifelong.refresh_events)
        items = np.asarray(events.items)[places]
        values = self._values(events, places, _seconds_before(events, places, first))
        if not len(places):
            return items, values
        chosen, clusters = representatives(
            self._vectors_NV[items], lifelong.max_representatives, lifelong.max_cluster_items
        )
        return items[chosen], means_of_groups(values, clusters, len(chosen))

    def _values(self, events: UserEvents, places: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """The numbers (len(places), E) float32 of some events; `seconds` stand for their time."""
        values = np.full((len(places), len(self.spec.numbers)), np.nan, dtype=np.float32)
        for column, number in enumerate(self.spec.numbers):
            if number.name == TIMESTAMP:
                values[:, column] = seconds
            elif number.name in events.feedback:
                values[:, column] = events.feedback[number.name][places]
        return values


@dataclass(frozen=True)
class WindowPathways:
    """What the pathways read of training windows, whose rows are those of `source`."""

    reader: PathwayReader
    source: EventSource

    def read(self, starts: np.ndarray, stops: np.ndarray, width: int) -> dict[str, Tensor]:
        """As `PathwayReader.read`, for windows whose short-term history are the rows `starts` to `stops - 2`.

        `returns` (B, 1 + S, J) are those of the events that each position precedes.
        """
        requests = [self.source.before(int(stop) - 1) for stop in stops]
        batch = self.reader.read(requests, stops - 1 - starts, width)
        if self.returns is not None:
            rows_BP = np.minimum(starts[:, None] + np.arange(width + 1), len(self.returns) - 1)
            batch["returns"] = torch.from_numpy(self.returns[rows_BP])
        return batch

    @cached_property
    def returns(self) -> np.ndarray | None:
        """The returns of every event, where the pathways read them."""
        settings = self.reader.spec.settings.returns
        return None if settings is None else returns_of(self.source.histories, settings.columns, settings.horizon)

    def num_older(self, starts: np.ndarray) -> np.ndarray:
        """Events before each window's that its pathways read: positive ones, and those that are clustered."""
        histories, settings = self.source.histories, self.reader.spec.settings
        firsts = histories.offsets[histories.users_of(starts)]
        counts = np.zeros(len(starts), dtype=np.int64)
        if settings.positive is not None and settings.positive.column in histories.feedback:
            is_positive = np.asarray(histories.feedback[settings.positive.column]) >= settings.positive.minimum
            before = np.concatenate(([0], np.cumsum(is_positive)))
            counts += np.minimum(before[starts] - before[firsts], settings.positive.length)
        if settings.lifelong is not None:
            counts += np.minimum(starts - firsts, settings.lifelong.max_representatives)
        return counts


def require_wishes(requests: Sequence[UserEvents], known: Sequence[str]) -> None:
    """Refuse wishes that a model cannot grant.

    Raises:
        DataError: a wish for a column of which the model has no returns, or one that is no number.
    """
    for events in requests:
        for name, value in events.wished.items():
            if name not in known or not np.isfinite(value):
                raise DataError(
                    f"wished: found {value!r} of {name!r}, expected finite numbers of columns whose returns the model "
                    f"was trained with ({', '.join(known) or 'none: train with model.pathways.returns'})."
                )


def _times(pairs: Sequence[tuple[UserEvents, int]], width: int) -> Tensor:
    """Unix seconds (B, width) of each user's events from a place on, whole and exact, unlike float32's."""
    times_BS = np.full((len(pairs), width), np.nan)
    for row, (events, first) in enumerate(pairs):
        if events.timestamps is not None:
            times_BS[row, : len(events) - first] = events.timestamps[first:]
    return torch.from_numpy(times_BS)


def _seconds_before(events: UserEvents, places: np.ndarray, first: int) -> np.ndarray:
    """How long before the event in place `first` those in `places` were; NaN where times are not known."""
    if events.timestamps is None or not len(places):
        return np.full(len(places), np.nan)
    return events.timestamps[first] - np.asarray(events.timestamps, dtype=np.float64)[places]


def _padded(name: str, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Tensor]:
    """One padded event at least, so that every process of a training uses every weight of the pathway."""
    width = max(1, *(len(items) for items, _ in parts))
    tokens = [np.asarray(items, dtype=np.int64)[:, None] + 1 for items, _ in parts]
    return {
        f"{name}_items": _pad(tokens, width)[..., 0],
        f"{name}_values": _pad([values for _, values in parts], width),
    }


def _pad(rows: Sequence[np.ndarray], width: int) -> Tensor:
    """Arrays (n, E) as one tensor (B, width, E), 0 in the padding."""
    padded = np.zeros((len(rows), width, rows[0].shape[1]), dtype=rows[0].dtype)
    for number, values in enumerate(rows):
        padded[number, : len(values)] = values
    return torch.from_numpy(padded)
