"""What the stream knows between two partitions: histories, catalogue, tokenizer, model and the optimizer's moments.

Histories are ragged arrays, and new events are put behind each user's own: users and items keep their numbers, those
that are new follow. A label says what an event has been: TRAIN, trained on; VALIDATION, held out by the base and not
trained on yet; TEST, of the partition at hand.

Shapes: U users, N items, E new events.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from onerec.data.events import number_ids
from onerec.data.histories import Histories, Split
from onerec.data.tables import ITEM, USER
from onerec.errors import DataError
from onerec.model.onerec import OneRec
from onerec.pipeline import Pipeline
from onerec.training.pretraining import ARTIFACT_KIND as PRETRAIN_KIND
from tokenizer.artifacts import Manifest, read_manifest, require_same_hash
from tokenizer.table import SemanticIdTable

KIND = "stream-day"
MOMENTS = "optimizer.safetensors"


@dataclass(frozen=True)
class Log:
    """All users' events so far; user u and item k are row u and row k of their tables."""

    histories: Histories
    user_ids: pl.Series
    items: pl.DataFrame

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return self.items.height

    def save(self, folder: Path) -> None:
        """Write its files into `folder` (an artefact being built)."""
        self.histories.save(folder / "events")
        pl.DataFrame({USER: self.user_ids}).write_parquet(folder / "users.parquet")
        self.items.write_parquet(folder / "items.parquet")

    @classmethod
    def load(cls, folder: Path) -> "Log":
        """Open what `save` wrote; the events are memory-mapped."""
        users, items = (pl.read_parquet(folder / f"{name}.parquet") for name in ("users", "items"))
        return cls(Histories.load(folder / "events"), users[USER], items)

    def append(self, user_ids: pl.Series, items: pl.DataFrame, users_E: np.ndarray, rows: "NewRows") -> "Log":
        """The log with the events of a partition, labelled as TEST.

        Args:
            user_ids: keys of the users that `users_E` counts.
            items: the whole catalogue, those known so far first.

        Raises:
            DataError: an event lies before one that its user has already.
        """
        places = number_ids(user_ids, self.user_ids).copy()
        places[places < 0] = len(self.user_ids) + np.arange((places < 0).sum(), dtype=np.int32)
        unknown = user_ids.filter(pl.Series(places >= len(self.user_ids)))
        all_ids = pl.concat([self.user_ids, unknown.cast(self.user_ids.dtype)])
        return Log(append_events(self.histories, len(all_ids), places[users_E], rows), all_ids, items)

    def trained(self) -> "Log":
        """The same, with every event trained on."""
        arrays = self.histories
        labels = np.full(arrays.num_events, Split.TRAIN, dtype=np.uint8)
        return Log(Histories(arrays.offsets, arrays.items, arrays.timestamps, labels), self.user_ids, self.items)


@dataclass(frozen=True)
class NewRows:
    """Items and moments of new events, each user's oldest first."""

    items_E: np.ndarray
    timestamps_E: np.ndarray


def append_events(histories: Histories, num_users: int, users_E: np.ndarray, rows: NewRows) -> Histories:
    """Put new events behind each user's own.

    Raises:
        DataError: an event lies before one that its user has already.
    """
    order = np.argsort(users_E, kind="stable")
    new_U = np.bincount(users_E, minlength=num_users)
    old_U = np.zeros(num_users, dtype=np.int64)
    old_U[: histories.num_users] = np.diff(histories.offsets)
    offsets = np.concatenate([[0], np.cumsum(old_U + new_U)])
    old_places = np.arange(histories.num_events) + np.repeat(offsets[:-1] - (np.cumsum(old_U) - old_U), old_U)
    new_places = np.arange(len(order)) + np.repeat(offsets[:-1] + old_U - (np.cumsum(new_U) - new_U), new_U)

    def merge(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        merged = np.empty(offsets[-1], dtype=old.dtype)
        merged[old_places], merged[new_places] = old, new
        return merged

    timestamps = merge(histories.timestamps, rows.timestamps_E[order])
    _refuse_late(offsets, timestamps)
    labels = np.full(len(order), Split.TEST, dtype=np.uint8)
    return Histories(offsets, merge(histories.items, rows.items_E[order]), timestamps, merge(histories.splits, labels))


def _refuse_late(offsets: np.ndarray, timestamps: np.ndarray) -> None:
    falls = np.flatnonzero(timestamps[1:] < timestamps[:-1]) + 1
    late = falls[~np.isin(falls, offsets)]
    if len(late):
        raise DataError(
            f"stream: {len(late):,} events lie before one that their user has in an older partition, the first at "
            f"{timestamps[late[0]]} seconds after {timestamps[late[0] - 1]}. Put them into the partition of their time."
        )


@dataclass(frozen=True)
class StreamState:
    """The state after a partition, or that of the base before the first one."""

    log: Log
    table: SemanticIdTable
    tokenizer: Path
    model: Path
    moments: Path | None
    content_hash: str

    @classmethod
    def of_base(cls, base: Pipeline) -> "StreamState":
        """The base's state: what its split held out has not been trained on.

        Raises:
            ArtifactError: its data, tokenizer or pre-training is missing, or they do not belong together.
        """
        manifest = read_manifest(base.folder / "pretrain", PRETRAIN_KIND)
        histories = base.data.histories
        labels = np.where(histories.splits == Split.TRAIN, Split.TRAIN, Split.VALIDATION).astype(np.uint8)
        log = Log(
            Histories(histories.offsets, histories.items, histories.timestamps, labels),
            base.data.users[USER],
            base.data.items,
        )
        folders = base.folder / "tokenizer", base.folder / "pretrain"
        return cls(log, base.table, *folders, None, manifest.content_hash)

    @classmethod
    def load(cls, folder: Path) -> "StreamState":
        """Open what a partition left.

        Raises:
            ArtifactError: a missing or changed file, or parts of several catalogues or tokenizers (hashes shown).
        """
        manifest = read_manifest(folder, KIND)
        log = Log.load(folder)
        table = SemanticIdTable.load(folder / "tokenizer", item_ids=map(str, log.items[ITEM].to_list()))
        moments = folder / MOMENTS
        kept = moments if moments.is_file() else None
        return cls(log, table, folder / "tokenizer", folder, kept, manifest.content_hash)

    def load_model(self) -> OneRec:
        """The model as the partition left it.

        Raises:
            ArtifactError: it was trained on another ID table.
        """
        model: OneRec = OneRec.from_pretrained(self.model)
        require_same_hash(
            f"{self.model}: its model was trained on another ID table",
            model.config.table_hash,
            self.table.content_hash,
            "Delete the folder and stream again.",
        )
        return model


def require_inputs(manifest: Manifest, expected: dict[str, str], folder: Path) -> None:
    """Refuse a state of other inputs than those at hand, showing both hashes of the first that differs.

    Raises:
        ArtifactError: it follows another base, tokenizer, partition or state.
    """
    for name, content_hash in expected.items():
        require_same_hash(
            f"{folder}: it was made from another {name}",
            manifest.inputs.get(name, "nothing"),
            content_hash,
            "Delete it and all that follow to stream them again, or put that back which they were made from.",
        )
