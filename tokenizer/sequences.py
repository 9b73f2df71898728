"""Training sequences of item indices: flat array with offsets."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenizer.errors import DataError

TRAIN = 0  # label of training events in events/splits.npy


@dataclass(frozen=True)
class Sequences:
    """Training events of all users, oldest first.

    Args:
        offsets: int64 (U+1,); the events of user u are items[offsets[u]:offsets[u+1]].
        items: int32 (N,) item indices.

    Raises:
        DataError: offsets that do not cut `items` into rows.
    """

    offsets: np.ndarray
    items: np.ndarray

    def __post_init__(self) -> None:
        offsets = self.offsets
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(self.items) or np.any(np.diff(offsets) < 0):
            raise DataError(
                f"sequences: the offsets do not cut {len(self.items)} events into rows; "
                "expected 0 first, never decreasing, the number of events last."
            )

    @classmethod
    def load_training(cls, folder: Path) -> "Sequences":
        """Read a prepared `events/` folder and keep its training events.

        Raises:
            DataError: a file is missing or the files disagree.
        """
        try:
            offsets, items, splits = (np.load(folder / f"{name}.npy") for name in ("offsets", "items", "splits"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{folder}: cannot read the events ({error}); expected offsets.npy, items.npy and splits.npy."
            ) from error
        if len(splits) != len(items):
            raise DataError(
                f"{folder}: found {len(splits)} split labels for {len(items)} events. Prepare the data again."
            )
        is_training = splits == TRAIN
        kept_before = np.concatenate([[0], np.cumsum(is_training)])
        return cls(kept_before[offsets].astype(np.int64), items[is_training])

    def item_counts(self, num_items: int) -> np.ndarray:
        """Events an item, int64 (num_items,).

        Raises:
            DataError: an item index outside the catalogue.
        """
        if len(self.items) and not 0 <= int(self.items.min()) <= int(self.items.max()) < num_items:
            raise DataError(
                f"sequences: item indices run from {self.items.min()} to {self.items.max()}, "
                f"expected 0..{num_items - 1}. Events and items come from different data."
            )
        return np.bincount(self.items, minlength=num_items)
