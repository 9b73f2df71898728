"""`python -m onerec.evaluation.record [results]`: every kept result as Markdown, a table a data set.

Ours and our baselines by one evaluator, with seeds, spread, interval, minutes of training and parameters; below them
published figures, each in the column of its protocol, with its source and what else differs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from onerec.config import RunConfig
from onerec.errors import ArtifactError, OneRecError
from onerec.evaluation.charts import format_tick
from onerec.evaluation.published import PublishedFigures, published_figures
from onerec.evaluation.results import MetricSummary, RecommenderSummary, Results, read_results
from onerec.evaluation.settings import Protocol
from onerec.evaluation.tables import main_metric, markdown_table
from tokenizer.settings import load_settings

_COLUMNS: dict[str, Protocol] = {"test": "seen_allowed", "test_unseen": "seen_excluded"}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the record; 1 after an error that is printed."""
    parser = argparse.ArgumentParser(prog="python -m onerec.evaluation.record", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("results"), help="folder of results, one a set")
    arguments = parser.parse_args(argv)
    try:
        print(record(arguments.folder))
    except OneRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def record(folder: Path) -> str:
    """The tables of all results in a folder, by name.

    Raises:
        ArtifactError: no result, or one that cannot be read.
        ConfigError: a stored config that is none.
    """
    files = sorted(folder.glob("*/metrics.json"))
    if not files:
        raise ArtifactError(f"{folder}: found no */metrics.json, expected results. Run make results first.")
    return "\n\n".join(f"{_heading(file)}\n\n{set_table(read_results(file))}" for file in files)


def set_table(results: Results) -> str:
    """One data set's table in Markdown."""
    main = main_metric(results)
    pair = (main, main.replace("recall", "ndcg"))
    shown = " / ".join(metric[0].upper() + metric[metric.index("@") :] for metric in pair)
    headings = ["", f"seen allowed {shown}", "interval", f"seen excluded {shown}", "interval"]
    headings += ["train min", "parameters", "source"]
    names = dict.fromkeys(name for protocol in _COLUMNS for name in results.under(protocol))
    rows = [_own_row(name, results, pair) for name in names]
    for published in _COLUMNS.values():
        rows += [
            _published_row(row, pair)
            for row in published_figures(results.dataset, published)
            if any(metric in row.metrics for metric in pair)
        ]
    return markdown_table([headings, *rows])


def _heading(file: Path) -> str:
    results, config = read_results(file), file.with_name("config.yaml")
    seeds = f"seed{'s' * (len(results.seeds) > 1)} {', '.join(map(str, results.seeds))}"
    targets = next((results.rows[protocol] for protocol in _COLUMNS if protocol in results.rows), None)
    facts = [seeds, *([f"{targets['evaluated']:,} of {targets['available']:,} test targets"] if targets else [])]
    if config.is_file():
        chosen = load_settings(RunConfig, config)
        model, epochs = chosen.model, chosen.training.epochs
        facts.append(f"width {model.d_model}, dropout {model.dropout:g}, {epochs} epochs, all in `{config}`")
    return f"**{results.dataset}**: {'; '.join(facts)}"


def _own_row(name: str, results: Results, pair: Sequence[str]) -> list[str]:
    summaries = [results.under(protocol).get(name) for protocol in _COLUMNS]
    known = next(summary for summary in summaries if summary is not None)
    cells = [cell for summary in summaries for cell in _own_cells(summary, pair)]
    seeds = len(known.metrics[pair[0]].by_seed)
    source = "ours" if seeds == 1 else f"ours, mean of {seeds} seeds ± their standard deviation"
    return [name, *cells, f"{known.minutes:.0f}", format_tick(known.parameters), source]


def _own_cells(summary: RecommenderSummary | None, pair: Sequence[str]) -> list[str]:
    if summary is None:
        return ["", ""]
    figures = [summary.metrics[metric] for metric in pair]
    low, high = figures[0].interval
    return [" / ".join(_mean(figure) for figure in figures), f"{_share(low)} to {_share(high)}"]


def _mean(figure: MetricSummary) -> str:
    return _share(figure.mean) + ("" if figure.spread is None else f" ± {_share(figure.spread)}")


def _published_row(row: PublishedFigures, pair: Sequence[str]) -> list[str]:
    figures = " / ".join(_share(row.metrics[metric]) if metric in row.metrics else "–" for metric in pair)
    columns = [cell for protocol in _COLUMNS.values() for cell in (figures if protocol == row.protocol else "", "")]
    source = f"{row.source}; {row.evidence.replace('_', '-')}"
    return [row.model, *columns, "", "", f"{source}; {row.note}" if row.note else source]


def _share(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


if __name__ == "__main__":
    sys.exit(main())
