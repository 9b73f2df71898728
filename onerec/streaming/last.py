"""The bundle of the newest state: all that serving needs, as of the last partition."""

from pathlib import Path

import polars as pl

from onerec.bundle import KIND as BUNDLE_KIND
from onerec.bundle import write_bundle
from onerec.config import RunConfig
from onerec.data.prepared import PreparedData
from onerec.data.tables import USER
from onerec.evaluation.results import summarize_runs
from onerec.evaluation.runs import load_run
from onerec.pipeline import Pipeline
from onerec.streaming.arrival import FROZEN, STREAMED
from onerec.streaming.state import StreamState
from tokenizer.artifacts import MANIFEST_NAME, read_manifest


def write_last(
    base: Pipeline, state: StreamState, day: Path, folder: Path, config: RunConfig, terms: dict[str, str]
) -> None:
    """Write the bundle of `state`, which `day` has left; one that is of it already is kept.

    Args:
        config: the run's own.
        terms: source, licence and citation of the data, where they are not those of the base.

    Raises:
        ArtifactError: parts that do not belong together.
    """
    if (folder / MANIFEST_NAME).is_file() and read_manifest(folder, BUNDLE_KIND).inputs.get(
        "state"
    ) == state.content_hash:
        return
    data = _data_of(base, state, terms)
    runs = {name: [load_run(day / "evaluations" / name)] for name in (STREAMED, FROZEN)}
    results = summarize_runs(runs, data.manifest.details["source"], config.evaluation)
    inputs = {"data": base.data.manifest.content_hash, "state": state.content_hash}
    write_bundle(folder, state.load_model().eval(), state.table, data, results, config, inputs, state.tokenizer)


def _data_of(base: Pipeline, state: StreamState, terms: dict[str, str]) -> PreparedData:
    """The base's data with the catalogue and the histories of the state, described by their numbers of today."""
    log, known = state.log, base.data
    counts = {
        "num_users": len(log.user_ids),
        "num_items": log.num_items,
        "num_events": log.histories.num_events,
    }
    manifest = known.manifest.model_copy(update={"details": {**known.manifest.details, **terms, **counts}})
    return PreparedData(log.items, pl.DataFrame({USER: log.user_ids}), log.histories, known.schema, manifest)
