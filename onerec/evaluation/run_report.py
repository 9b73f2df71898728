"""The report of a run, put together from its folder."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from onerec.data.prepared import PreparedData
from onerec.errors import ArtifactError
from onerec.evaluation.examples import choose_examples
from onerec.evaluation.recommender import Recommender
from onerec.evaluation.report import ReportContents, write_report
from onerec.evaluation.results import Results, Run
from tokenizer.artifacts import code_revision, package_versions
from tokenizer.settings import Settings, dump_yaml

_LONGEST_TITLE = 100


def write_run_report(
    folder: Path, results: Results, data: PreparedData, recommender: Recommender, run: Run, config: Settings
) -> None:
    """Write `report/report.html` of the run in `folder`.

    Args:
        recommender: the one that `run` evaluated; it recommends again to the users shown.

    Raises:
        ArtifactError: the run lacks its training log or its tokenizer's report.
    """
    evaluation = run.evaluations.get("test_unseen") or next(iter(run.evaluations.values()))
    contents = ReportContents(
        title=f"{folder.name}: {recommender.name} on {results.dataset}",
        results=results,
        training_log=_read(folder / "pretrain" / "log_history.json"),
        tokenizer_report=_read(folder / "tokenizer" / "report.json"),
        examples=choose_examples(recommender, data, evaluation, item_titles(data)),
        config_yaml=dump_yaml(config),
        versions={**package_versions(), "code revision": code_revision(), "data": data.manifest.content_hash},
    )
    write_report(folder / "report" / "report.html", contents)


def item_titles(data: PreparedData) -> list[str]:
    """What to call each item: its first text column, cut where it is long, or its id where it has no text."""
    titles = pl.col("item_id").cast(pl.String)
    if data.schema.text_columns:
        titles = pl.coalesce(pl.col(data.schema.text_columns[0]).cast(pl.String), titles)
    names: list[str] = data.items.select(titles.alias("title"))["title"].to_list()
    return [name if len(name) <= _LONGEST_TITLE else name[: _LONGEST_TITLE - 1] + "…" for name in names]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ArtifactError(f"cannot read {path} ({error}). Run its stage again.") from None
