"""Results as tables in the terminal, published figures of the same protocol beside ours."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from onerec.evaluation.charts import format_tick
from onerec.evaluation.published import published_figures
from onerec.evaluation.results import PROTOCOLS, RecommenderSummary, Results
from onerec.evaluation.settings import Protocol
from onerec.evaluation.slices import printed_slices

SHOWN_METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
TITLES = {
    "test": "Test, seen items allowed",
    "test_unseen": "Test, seen items excluded",
    "validation": "Validation, seen items allowed",
    "validation_unseen": "Validation, seen items excluded",
}


def print_results(results: Results, console: Console | None = None) -> None:
    """Print one table a protocol that was evaluated, then the first protocol's slices by popularity."""
    console = console or Console()
    evaluated = [protocol for protocol in PROTOCOLS if results.under(protocol)]
    for protocol in evaluated:
        console.print(results_table(results, protocol))
    if any(summary.slices for summary in results.under(evaluated[0]).values()):
        console.print(printed_slices(results, evaluated[0]))


def results_table(results: Results, protocol: str) -> Table:
    """The table of one protocol, 80 columns wide; published figures, where there are any, below ours (test only)."""
    table = Table(
        title=describe_protocol(results, protocol),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("recommender", max_width=24)
    shown, main = shown_metrics(results), main_metric(results)
    several_seeds = len(results.seeds) > 1
    headings = [*map(_abbreviate, shown), f"{_abbreviate(main)} interval", "invalid", "min", "size"]
    if several_seeds:
        headings.insert(len(shown), f"± {_abbreviate(main)}")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, summary in results.under(protocol).items():
        cells = _cells(summary, shown, main)
        if several_seeds:
            cells.insert(len(shown), _spread(summary, main))
        table.add_row(name, *cells)
    figures = published_figures(results.dataset, published_protocol(protocol)) if protocol.startswith("test") else []
    if figures:
        table.add_section()
    for row in figures:
        cells = [_share(row.metrics[metric]) if metric in row.metrics else "" for metric in shown]
        cells += [""] * several_seeds
        table.add_row(row.model, *cells, row.evidence.replace("_", "-"), "", "", "", style="dim")
    return table


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Headings, then rows, as a Markdown table whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines.insert(1, ["-" * max(width, 3) for width in widths])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def describe_protocol(results: Results, protocol: str) -> str:
    """Title of a protocol's table, naming the data set and, where it is one, the sample."""
    rows = results.rows[protocol]
    sampled = rows["evaluated"] < rows["available"]
    size = f"a sample of {rows['evaluated']:,} of {rows['available']:,}" if sampled else f"all {rows['available']:,}"
    return f"{results.dataset}: {TITLES[protocol]} ({size} targets, full ranking)"


def published_protocol(protocol: str) -> Protocol:
    """The protocol of published figures that compares with one of ours."""
    return "seen_excluded" if protocol.endswith("_unseen") else "seen_allowed"


def shown_metrics(results: Results) -> list[str]:
    """The metrics that tables show: the usual ones as far as they were measured, else Recall and NDCG as measured."""
    ks = results.settings["ks"]
    usual = [metric for metric in SHOWN_METRICS if int(metric.partition("@")[2]) in ks]
    return usual or [f"{metric}@{k}" for k in ks for metric in ("recall", "ndcg")]


def main_metric(results: Results) -> str:
    """The metric that stands for all where there is room for one: Recall@10, or the longest list's Recall."""
    ks = results.settings["ks"]
    return f"recall@{10 if 10 in ks else ks[-1]}"


def _cells(summary: RecommenderSummary, shown: list[str], main: str) -> list[str]:
    low, high = summary.metrics[main].interval
    return [
        *(_share(summary.metrics[metric].mean) for metric in shown),
        f"{_share(low)}-{_share(high)}",
        f"{summary.invalid_rate:.1%}",
        f"{summary.minutes:.1f}",
        format_tick(summary.parameters),
    ]


def _spread(summary: RecommenderSummary, main: str) -> str:
    """Standard deviation over the seeds; nothing for a recommender without a second one."""
    spread = summary.metrics[main].spread
    return "" if spread is None else _share(spread)


def _share(value: float) -> str:
    """Four decimals without the zero in front, as papers print them."""
    return f"{value:.4f}".removeprefix("0")


def _abbreviate(metric: str) -> str:
    """`recall@10` as R@10."""
    return metric[0].upper() + metric[metric.index("@") :]
