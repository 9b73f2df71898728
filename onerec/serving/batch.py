"""Recommendations for a whole table of users, part by part: a run that was killed goes on where it stopped.

Parts lie beside the result until it is whole, under a note of what they were made from. They have the same users in
every run, so that a run that was broken off gives what an unbroken one gives.
"""

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import Field, PositiveInt
from tqdm import tqdm

from onerec.bundle import Bundle
from onerec.data.pathways import UserEvents
from onerec.data.tables import USER
from onerec.decoding.parallel.processes import Processes
from onerec.decoding.recommender import OneRecRecommender
from onerec.errors import ConfigError, DataError
from onerec.evaluation.recommender import NO_ITEM
from onerec.serving.catalogue import Catalogue
from onerec.serving.changes import ItemChange
from onerec.serving.histories import HistoryStore
from onerec.serving.known import known_events
from onerec.serving.stores import is_redis, open_stores
from tokenizer.artifacts import atomic_file, explained_os_errors, hash_file, hash_text, write_json
from tokenizer.settings import Settings

_HISTORY = "history"
_NOTE = "run.json"


class BatchSettings(Settings):
    """What every user of a batch is answered."""

    k: PositiveInt = Field(10, description="items for each user")
    beams: PositiveInt | None = Field(None, description="prefixes kept in the search; the bundle's own number if null")
    exclude_seen: bool = Field(True, description="leave out every item of the history")
    max_history_items: PositiveInt = Field(10_000, description="newest stored events of a user that are looked at")
    users_per_part: PositiveInt = Field(4_096, description="users after which the work is safe")
    compile: bool = Field(
        False, description="decode by compiled programs, which a C++ compiler takes minutes to make, for large tables"
    )


@dataclass(frozen=True)
class Batch:
    """One run over a table of users."""

    catalogue: Catalogue
    recommender: OneRecRecommender
    users: pl.LazyFrame
    histories: HistoryStore | None
    settings: BatchSettings

    def part(self, start: int) -> pl.DataFrame:
        """Answers to the users from row `start` on, one row a user."""
        users = self.users.slice(start, self.settings.users_per_part).collect()
        found = list(self._histories(users))
        histories = [events for events, _ in found]
        ranking = self.recommender.recommend(histories, self.settings.k, self.settings.exclude_seen)
        filled_BK = ranking.items_BK != NO_ITEM
        ids = pl.Series(self.catalogue.ids, dtype=self.catalogue.items.schema["item_id"])
        items = [ids.gather(row[filled]) for row, filled in zip(ranking.items_BK, filled_BK, strict=True)]
        scores = [row[filled] for row, filled in zip(ranking.scores_BK, filled_BK, strict=True)]
        return pl.DataFrame(
            {
                USER: users[USER],
                "items": pl.Series(items, dtype=pl.List(ids.dtype)),
                "scores": pl.Series(scores, dtype=pl.List(pl.Float32)),
                "history_items_unknown": pl.Series([unknown for _, unknown in found], dtype=pl.UInt32),
            }
        )

    def _histories(self, users: pl.DataFrame) -> Iterator[tuple[UserEvents, int]]:
        """The events of each user whose items the catalogue has, and how many it has not."""
        if self.histories is None:
            for items in users[_HISTORY].to_list():
                found = [self.catalogue.find(str(item)) for item in items or ()]
                known = [index for index in found if index is not None]
                yield UserEvents(np.array(known, dtype=np.int64)), len(found) - len(known)
        else:
            for user in users[USER].cast(pl.String):
                stored = self.histories.newest(user, self.settings.max_history_items)
                events = known_events(stored, self.catalogue)
                yield events, len(stored) - len(events)


@dataclass(frozen=True)
class Workers:
    """Processes under Ray.

    Args:
        cluster: address of a running Ray, such as `auto`; None to start one on this machine.
    """

    number: int
    cluster: str | None = None


def choose_workers(number: int | None, cluster: str | None) -> Workers | Processes | None:
    """Who makes the parts: so many processes under Ray, those that torchrun has started, or this one for None.

    Raises:
        ConfigError: both of the former.
    """
    by_ray = number is not None or cluster is not None
    if not Processes.are_several():
        return Workers(number or 0, cluster) if by_ray else None
    if by_ray:
        raise ConfigError(
            "--ray: found under torchrun, expected one of the two. Ray's workers hold a whole model each."
        )
    return Processes.join()


@dataclass(frozen=True)
class BatchJob:
    """A run over a table of users, as other processes may be told of it.

    Args:
        users: Parquet file with `user_id` and, where their histories do not come from `state`, with `history`: lists
            of item ids, oldest first.
        state: where the server keeps histories and changes of the catalogue: its SQLite file or Redis.
        changes: of the catalogue, the same in every process.
        parts: folder of what is done.
    """

    bundle: Path
    users: Path
    state: str | Path | None
    settings: BatchSettings
    changes: tuple[ItemChange, ...]
    parts: Path

    def open(self, bundle: Bundle, histories: HistoryStore | None) -> Batch:
        """The run in this process; errors as `run_batch` has them."""
        catalogue, recommender = self.prepare(bundle)
        table = _read_users(self.users, has_histories=histories is not None)
        stored = None if _HISTORY in table.collect_schema() else histories
        return Batch(catalogue, recommender, table, stored, self.settings)

    def prepare(self, bundle: Bundle) -> tuple[Catalogue, OneRecRecommender]:
        """The items, and who recommends them."""
        catalogue, _ = Catalogue.of(bundle).adopt(self.changes)
        return catalogue, _as_wanted(catalogue.recommender, self.settings)

    def path(self, start: int) -> Path:
        """File of the part that begins with row `start`."""
        return self.parts / f"{start:012d}.parquet"

    def write(self, batch: Batch, start: int) -> None:
        """Make a part."""
        with atomic_file(self.path(start)) as temporary:
            batch.part(start).write_parquet(temporary)


def run_batch(
    bundle_folder: Path,
    users: Path,
    out: Path,
    state: str | Path | None,
    settings: BatchSettings,
    workers: Workers | Processes | None = None,
) -> int | None:
    """Answer every row of `users` into `out`; the number of users, None in a process that only helps another.

    Args:
        users: see `BatchJob`.
        out: Parquet file to write, one row a user in their order: `user_id`, `items`, `scores`,
            `history_items_unknown`.
        state: see `BatchJob`.
        workers: processes under Ray that make the parts, or those among which the model is shared out to make them;
            None to make them here.

    Raises:
        ArtifactError: a damaged bundle, or a place that cannot be written.
        ConfigError: fewer beams than items, parts of another run beside `out`, or workers that cannot be had.
        DataError: a table without users or without histories.
    """
    if isinstance(workers, Processes) and not workers.is_leader:
        from onerec.serving.batch_processes import help_leader

        help_leader(workers)
        return None
    bundle = Bundle.load(bundle_folder)
    with opened_state(state) as (histories, changes):
        parts = out.with_name(out.name + ".parts").resolve()
        place = state if state is None or is_redis(state) else Path(state).resolve()
        job = BatchJob(bundle_folder.resolve(), users.resolve(), place, settings, tuple(changes), parts)
        batch = job.open(bundle, histories)
        _open_parts(parts, _identity(bundle, job))
        num_users = int(batch.users.select(pl.len()).collect().item())
        starts = range(0, num_users, settings.users_per_part)
        missing = [start for start in starts if not job.path(start).exists()]
        if workers is None:
            for start in tqdm(missing, desc="users", unit="part"):
                job.write(batch, start)
        elif isinstance(workers, Processes):
            from onerec.serving.batch_processes import write_parts_together

            write_parts_together(job, batch, missing, workers)
        else:
            from onerec.serving.batch_workers import write_parts

            write_parts(job, missing, workers)
    with atomic_file(out) as temporary:
        pl.scan_parquet([job.path(start) for start in starts]).sink_parquet(temporary)
    shutil.rmtree(parts)
    return num_users


def _identity(bundle: Bundle, job: BatchJob) -> dict[str, object]:
    """What the parts are made from."""
    return {
        "bundle": bundle.manifest.content_hash,
        "users": hash_file(job.users),
        "catalogue": hash_text(repr(list(job.changes))),
        "settings": job.settings.model_dump(mode="json"),
    }


@contextmanager
def opened_state(state: str | Path | None) -> Iterator[tuple[HistoryStore | None, list[ItemChange]]]:
    """The server's histories, and its changes of the catalogue; nothing without a place."""
    if state is None:
        yield None, []
        return
    if not is_redis(state) and not Path(state).is_file():
        raise DataError(f"{state}: found no such file, expected the server's SQLite file. Check --histories.")
    histories, changes = open_stores(state)
    with closing(histories), closing(changes):
        yield histories, changes.read()


def _as_wanted(recommender: OneRecRecommender, settings: BatchSettings) -> OneRecRecommender:
    """The recommender with the batch's beams, its decoder compiled or not."""
    beams = settings.beams or max(recommender.num_beams, settings.k)
    if beams < settings.k:
        raise ConfigError(f"beams: found {beams} for k = {settings.k}, expected at least k. Raise beams, or lower k.")
    chosen = copy.copy(recommender)
    chosen.num_beams = beams
    chosen.model.decoder.compiled = settings.compile
    return chosen


def _read_users(path: Path, has_histories: bool) -> pl.LazyFrame:
    try:
        table = pl.scan_parquet(path)
        schema = table.collect_schema()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}).") from error
    if USER not in schema:
        raise DataError(f"{path}: found the columns {', '.join(schema.names())}, expected {USER!r}.")
    if not has_histories and not isinstance(schema.get(_HISTORY), pl.List):
        found = f"{_HISTORY!r} of type {schema[_HISTORY]}" if _HISTORY in schema else f"no {_HISTORY!r}"
        raise DataError(
            f"{path}: found {found}, expected a column {_HISTORY!r} with lists of item ids. Give it, or --histories."
        )
    if not table.select(pl.len()).collect().item():
        raise DataError(f"{path}: found no user, expected one a row.")
    return table


def _open_parts(folder: Path, identity: dict[str, object]) -> None:
    """Make the folder of parts, where it is not there yet.

    Raises:
        ConfigError: what lies there was made from something else.
    """
    note = folder / _NOTE
    if not note.exists():
        with explained_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(note, identity)
    elif json.loads(note.read_text(encoding="utf-8")) != identity:
        raise ConfigError(
            f"{folder}: found parts of another run (bundle, users, catalogue or settings differ), expected none or "
            "those of this one. Delete the folder to begin anew, or choose another --out."
        )
