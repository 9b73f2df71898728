"""Every user's events as flat arrays with offsets, memory-mapped: no padding on disk, no Python object an event."""

from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

import numpy as np

from onerec.errors import DataError


class Split(IntEnum):
    """Which part of the protocol an event belongs to."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


@dataclass(frozen=True)
class Histories:
    """The event log by user, oldest event first.

    offsets: int64 (U+1,); user u's events are rows offsets[u]:offsets[u+1].
    items: int32 (N,) item indices.  timestamps: int64 (N,) Unix seconds, or positions where only the order is known.
    splits: uint8 (N,) labels of `Split`, never decreasing within a user.
    feedback: column -> float32 (N,), NaN where it was not recorded.
    """

    offsets: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    splits: np.ndarray
    feedback: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def num_users(self) -> int:
        """Number of users, those without an event included."""
        return len(self.offsets) - 1

    @property
    def num_events(self) -> int:
        """Number of events."""
        return len(self.items)

    def save(self, folder: Path) -> None:
        """Write one `.npy` file an array under `folder`."""
        (folder / "feedback").mkdir(parents=True, exist_ok=True)
        for name in ("offsets", "items", "timestamps", "splits"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        for name, values in self.feedback.items():
            np.save(folder / "feedback" / f"{name}.npy", values)

    @classmethod
    def load(cls, folder: Path) -> "Histories":
        """Memory-map what `save` wrote.

        Raises:
            DataError: arrays of unequal length.
        """
        files = sorted((folder / "feedback").glob("*.npy"))
        histories = cls(
            offsets=np.load(folder / "offsets.npy", mmap_mode="r"),
            items=_map_array(folder / "items.npy"),
            timestamps=_map_array(folder / "timestamps.npy"),
            splits=_map_array(folder / "splits.npy"),
            feedback={file.stem: _map_array(file) for file in files},
        )
        histories.check()
        return histories

    def check(self) -> None:
        """Refuse arrays that do not belong together.

        Raises:
            DataError: unequal lengths, or split labels that decrease within a user.
        """
        arrays = {"timestamps": self.timestamps, "splits": self.splits, **self.feedback}
        wrong = {name: len(values) for name, values in arrays.items() if len(values) != self.num_events}
        if wrong or self.offsets[-1] != self.num_events:
            raise DataError(
                f"events: found lengths {wrong}, offsets up to {self.offsets[-1]}, expected {self.num_events} items. "
                "Prepare the data again."
            )
        falls = np.flatnonzero(self.splits[1:] < self.splits[:-1]) + 1
        inside = falls[~np.isin(falls, self.offsets)]
        if len(inside):
            raise DataError(
                f"events: split labels decrease within a user at {len(inside)} rows, first at row {inside[0]}; "
                "expected training, then validation, then test in each user's order of time."
            )

    def training(self) -> "Histories":
        """The training events only, users unchanged: everything that is fitted sees nothing else."""
        kept = self.splits == Split.TRAIN
        return Histories(
            offsets=np.concatenate(([0], np.cumsum(kept, dtype=np.int64)))[self.offsets],
            items=self.items[kept],
            timestamps=self.timestamps[kept],
            splits=self.splits[kept],
            feedback={name: values[kept] for name, values in self.feedback.items()},
        )

    def targets(self, split: Split) -> np.ndarray:
        """Row numbers (int64, ascending) of the events with this label."""
        return np.flatnonzero(self.splits == split)

    def users_of(self, rows: np.ndarray) -> np.ndarray:
        """The user (int64) whose event each row is."""
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def before(self, row: int) -> np.ndarray:
        """Items (int32) of the same user before that row, oldest first: the full history."""
        start = self.offsets[np.searchsorted(self.offsets, row, side="right") - 1]
        return self.items[start:row]

    def item_counts(self, num_items: int) -> np.ndarray:
        """Events of each item, int64 (num_items,)."""
        return np.bincount(self.items, minlength=num_items)


def _map_array(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r")
    return array
