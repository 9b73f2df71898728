"""Recall by the popularity of what a user chose, every recommender side by side."""

from dataclasses import dataclass

from rich import box
from rich.table import Table

from onerec.evaluation.results import RecommenderSummary, Results

_SLICES = ("cold", "warm", "hot", "head", "tail")
_NO_VALUE = "–"


@dataclass(frozen=True)
class SliceTable:
    """What each recommender finds of each slice: a cell a slice, with every metric of `metrics` in it."""

    metrics: list[str]
    slices: dict[str, int]
    """Targets of each."""
    rows: dict[str, list[str]]
    """Cells by recommender."""
    note: str
    """What the slices are."""


def slice_table(results: Results, protocol: str) -> SliceTable:
    """Recall in short and long lists by slice under one protocol."""
    summaries = results.under(protocol)
    first = next(iter(summaries.values())).slices
    names = [name for name in _SLICES if name in first]
    metrics = _recalls(results.settings["ks"])
    return SliceTable(
        metrics=metrics,
        slices={name: round(first[name]["rows"]) for name in names},
        rows={name: [_cell(summary, each, metrics) for each in names] for name, summary in summaries.items()},
        note=f"cold: the target has no training event; warm: 1 to {results.settings['hot_min_count'] - 1}; hot: "
        f"{results.settings['hot_min_count']} or more. head: the target is among the most popular "
        f"{results.settings['head_share']:.0%} of the catalogue; tail: the rest. Targets in brackets.",
    )


def printed_slices(results: Results, protocol: str) -> Table:
    """The table for the terminal, 80 columns wide."""
    found = slice_table(results, protocol)
    what = "/".join(metric[0].upper() + metric[metric.index("@") :] for metric in found.metrics)
    table = Table(
        title=f"{what} by the target's popularity, {protocol.replace('_', ', ')}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        caption=found.note,
        caption_justify="left",
    )
    table.add_column("recommender", max_width=20)
    for name, count in found.slices.items():
        table.add_column(f"{name}\n({count:,})", justify="right", no_wrap=True)
    for name, cells in found.rows.items():
        table.add_row(name, *cells)
    return table


def _recalls(ks: list[int]) -> list[str]:
    """Recall at 10, or the shortest list's, and at the longest list's length."""
    return [f"recall@{k}" for k in dict.fromkeys((10 if 10 in ks else ks[0], ks[-1]))]


def _cell(summary: RecommenderSummary, name: str, metrics: list[str]) -> str:
    values = [summary.slices[name].get(metric) for metric in metrics]
    return "/".join(_NO_VALUE if value is None else f"{value:.4f}".removeprefix("0") for value in values)
