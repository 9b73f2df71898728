"""A partition arrives: its items get semantic IDs, its events join the histories, and it is evaluated untrained.

    arrival/  events/  users.parquet  items.parquet  tokenizer/  evaluations/{frozen,streamed}/  manifest.json

Every event of the partition is a target, with everything its user did before it as history. Neither model has seen
any of them; items that are new are in the catalogue of both, as an upload is before anybody has watched it.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onerec.data.events import MICROSECONDS, index_events
from onerec.data.histories import Split
from onerec.data.validation import Report, check_events, check_tables, check_text
from onerec.errors import DataError
from onerec.evaluation.evaluator import evaluate
from onerec.evaluation.results import Run
from onerec.evaluation.runs import save_run
from onerec.model.new_items import with_new_items
from onerec.model.onerec import OneRec
from onerec.pipeline import Pipeline
from onerec.run_recommender import run_recommender
from onerec.streaming.partitions import Partition
from onerec.streaming.state import Log, NewRows, StreamState
from onerec.training.pretraining import load_pretrained
from tokenizer.artifacts import atomic_folder, write_manifest
from tokenizer.assignment import assign_items
from tokenizer.fit import load_pieces
from tokenizer.table import SemanticIdTable

KIND = "stream-arrival"
FROZEN, STREAMED = "frozen", "streamed"


@dataclass(frozen=True)
class Catalogue:
    """A partition's ID table and the pieces of its IDs, in their folder."""

    folder: Path

    def grow(self, model: OneRec) -> OneRec:
        """The model over this catalogue, see `onerec.model.new_items`."""
        table = self.table()
        return with_new_items(model, table, load_pieces(self.folder, table))

    def table(self) -> SemanticIdTable:
        """The ID table."""
        return SemanticIdTable.load(self.folder)


def receive(base: Pipeline, state: StreamState, partition: Partition, inputs: dict[str, str], folder: Path) -> None:
    """Read a partition, assign its new items, evaluate on it, and store all that in `folder`.

    Raises:
        DataError: tables that break their schema, late events, no event that is left, or a new item that the
            tokenizer knows nothing of.
    """
    log = extend_log(base, state.log, partition)
    with atomic_folder(folder) as temporary:
        log.save(temporary)
        catalogue = _assign(state, log, temporary / "tokenizer", inputs)
        frozen = catalogue.grow(load_pretrained(base.folder / "pretrain", base.table))
        for name, model in ((FROZEN, frozen), (STREAMED, catalogue.grow(state.load_model()))):
            run = _evaluate(base, log, catalogue, model, name)
            save_run(temporary / "evaluations" / name, run, inputs, "")
        write_manifest(temporary, KIND, inputs, "", _counts(state.log, log))


def extend_log(base: Pipeline, known: Log, partition: Partition) -> Log:
    """The log with a partition's events, checked as those of the base were.

    Raises:
        DataError: as `receive`.
    """
    settings = base.config.data
    tables = partition.load(known.items, settings)
    report = Report(tables, settings.policies.model_copy(update={"single_event_users": "keep"}))
    check_tables(report)
    events = index_events(report, check_events(report)).without_absent_users()
    check_text(report, base.data.schema, np.arange(known.num_items, tables.items.height))
    report.refuse()
    if not len(events.users):
        raise DataError(f"{partition.folder}: no event is left of {tables.events.height:,}. Remove the partition.")
    rows = NewRows(events.items, events.moments // MICROSECONDS)
    return known.append(events.user_ids, tables.items, events.users, rows)


def _assign(state: StreamState, log: Log, folder: Path, inputs: dict[str, str]) -> Catalogue:
    """The tokenizer with the items that are new, or a copy of the one that knows them all."""
    new = log.items[state.table.num_items :]
    if new.height:
        assign_items(state.tokenizer, new, folder, inputs)
    else:
        shutil.copytree(state.tokenizer, folder)
    return Catalogue(folder)


def _evaluate(base: Pipeline, log: Log, catalogue: Catalogue, model: OneRec, name: str) -> Run:
    config, model = base.config, model.eval().to(base.processes.device)
    recommender = run_recommender(config, model, catalogue.table(), log.histories.training())
    recommender.name = name
    evaluations = evaluate(recommender, log, Split.TEST, config.evaluation)
    return Run(config.seed, evaluations, 0.0, model.num_parameters())


def _counts(before: Log, after: Log) -> dict[str, int]:
    return {
        "events": after.histories.num_events - before.histories.num_events,
        "new_users": len(after.user_ids) - len(before.user_ids),
        "new_items": after.num_items - before.num_items,
    }
