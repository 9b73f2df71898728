"""What the partitions showed: the streamed model beside the frozen one, partition by partition and over all targets.

    metrics.json  {"partitions": [{"name", "events", "new_items", "new_users", "minutes",
                                   "test": {"frozen": {"recall@10": ..., "cold": {...}}, "streamed": {...}}, ...}],
                   "overall": {"test": {"frozen": {...}, "streamed": {...}, "difference": {"recall@10": {...}}}}}

A cold target is an item that no earlier partition had. `difference` is streamed minus frozen on the same targets, with
an interval from resampled users.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from onerec.evaluation import metrics
from onerec.evaluation.charts import Series, line_chart
from onerec.evaluation.evaluator import Evaluation
from onerec.evaluation.page import Section, write_page
from onerec.evaluation.runs import load_run
from onerec.evaluation.settings import EvaluationSettings
from onerec.evaluation.tables import TITLES
from onerec.streaming.arrival import FROZEN, STREAMED
from onerec.streaming.state import KIND
from tokenizer.artifacts import read_manifest, write_json

_MODELS = (FROZEN, STREAMED)


def publish_figures(days: Sequence[Path], folder: Path, settings: EvaluationSettings, console: Console) -> None:
    """Write metrics.json and report.html of all finished partitions into `folder`, and print a table."""
    evaluations = [{name: load_run(day / "evaluations" / name).evaluations for name in _MODELS} for day in days]
    partitions = [
        {"name": day.name, **read_manifest(day, KIND, verify_files=False).details, **_by_protocol(of_day)}
        for day, of_day in zip(days, evaluations, strict=True)
    ]
    protocols = list(evaluations[0][FROZEN])
    overall = {name: _overall([_pair(of_day, name) for of_day in evaluations], settings) for name in protocols}
    write_json(folder / "metrics.json", {"partitions": partitions, "overall": overall})
    columns, rows = _table(partitions, overall, protocols[0], settings)
    _print(columns, rows, TITLES[protocols[0]], console)
    charts = [_chart(partitions, protocol, _shown(settings)[1]) for protocol in protocols]
    section = Section(TITLES[protocols[0]], _note(overall[protocols[0]], settings), charts, columns, rows)
    subtitle = "Every partition is evaluated before it is trained on; the frozen model is the base's."
    write_page(folder / "report.html", "Streaming", subtitle, [section])


def _by_protocol(evaluations: dict[str, dict[str, Evaluation]]) -> dict[str, dict[str, Any]]:
    return {
        protocol: {name: _figures(evaluations[name][protocol]) for name in _MODELS} for protocol in evaluations[FROZEN]
    }


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    return {"targets": len(evaluation.ranks_R), **evaluation.metrics, "cold": evaluation.slices["cold"]}


def _pair(evaluations: dict[str, dict[str, Evaluation]], protocol: str) -> tuple[Evaluation, Evaluation]:
    return evaluations[FROZEN][protocol], evaluations[STREAMED][protocol]


def _overall(pairs: Sequence[tuple[Evaluation, Evaluation]], settings: EvaluationSettings) -> dict[str, Any]:
    """Over the targets of all partitions."""
    frozen_RM, streamed_RM = (
        np.concatenate([metrics.metric_values(pair[place].ranks_R, settings.ks) for pair in pairs]) for place in (0, 1)
    )
    users_R = np.concatenate([frozen.targets.users_R for frozen, _ in pairs])
    how = (settings.bootstrap_samples, settings.confidence, settings.bootstrap_seed)
    names = metrics.metric_names(settings.ks)
    differences = metrics.compare_paired(streamed_RM, frozen_RM, users_R, *how)
    return {
        FROZEN: dict(zip(names, frozen_RM.mean(axis=0).tolist(), strict=True)),
        STREAMED: dict(zip(names, streamed_RM.mean(axis=0).tolist(), strict=True)),
        "difference": {name: dataclasses.asdict(each) for name, each in zip(names, differences, strict=True)},
    }


def _shown(settings: EvaluationSettings) -> tuple[str, str]:
    """The metrics that the table shows: at 10, or at the longest list."""
    k = 10 if 10 in settings.ks else settings.ks[-1]
    return f"recall@{k}", f"ndcg@{k}"


def _table(
    partitions: Sequence[dict[str, Any]], overall: dict[str, Any], protocol: str, settings: EvaluationSettings
) -> tuple[list[str], list[list[str]]]:
    """Columns and one row a partition, then one over all targets."""
    shown = _shown(settings)
    columns = ["partition", "events", "new items", "targets", "cold"]
    columns += [f"{metric[0].upper()}{metric[metric.index('@') :]} {name}" for metric in shown for name in _MODELS]
    rows = []
    for each in partitions:
        of_models = each[protocol]
        counts = (each["events"], each["new_items"], of_models[FROZEN]["targets"], of_models[FROZEN]["cold"]["rows"])
        rows.append([each["name"], *(f"{count:,}" for count in counts), *_cells(of_models, shown)])
    totals = (sum(each[key] for each in partitions) for key in ("events", "new_items"))
    counted = [each[protocol][FROZEN] for each in partitions]
    targets = (sum(each["targets"] for each in counted), sum(each["cold"]["rows"] for each in counted))
    rows.append(["all targets", *(f"{count:,}" for count in (*totals, *targets)), *_cells(overall[protocol], shown)])
    return columns, rows


def _cells(of_models: dict[str, Any], shown: Sequence[str]) -> list[str]:
    return [f"{of_models[name][metric]:.4f}".removeprefix("0") for metric in shown for name in _MODELS]


def _note(overall: dict[str, Any], settings: EvaluationSettings) -> str:
    metric = _shown(settings)[1]
    each = overall["difference"][metric]
    low, high = each["interval"]["low"], each["interval"]["high"]
    return f"{metric}, streamed less frozen: {each['difference']:+.4f} ({low:+.4f} to {high:+.4f})."


def _chart(partitions: Sequence[dict[str, Any]], protocol: str, metric: str) -> str:
    series = [
        Series(name, [(number, each[protocol][name][metric]) for number, each in enumerate(partitions, start=1)])
        for name in _MODELS
    ]
    return line_chart(series, "partition", f"{metric}, {TITLES[protocol].lower()}")


def _print(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, console: Console) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)
