"""One self-contained HTML page about a run: no script, no outside asset, readable in light and dark."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from onerec.evaluation.charts import NUM_COLOURS, Bar, Series, bar_chart, format_tick, line_chart
from onerec.evaluation.examples import UserExample
from onerec.evaluation.published import published_figures
from onerec.evaluation.results import PROTOCOLS, RecommenderSummary, Results
from onerec.evaluation.slices import slice_table
from onerec.evaluation.tables import TITLES, describe_protocol, main_metric, published_protocol, shown_metrics
from tokenizer.artifacts import atomic_file

_TEMPLATE = "report_template.html"


@dataclass(frozen=True)
class ReportContents:
    """What the page is made from; parts that are empty are left out of it."""

    title: str
    results: Results
    training_log: Sequence[dict[str, Any]] = ()
    """Trainer's log: dicts with `step` and any of `loss`, `loss_*` and `eval_*`."""
    tokenizer_report: dict[str, Any] = field(default_factory=dict)
    """The tokenizer's report.json."""
    examples: Sequence[UserExample] = ()
    config_yaml: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    """Packages, code revision, hashes: whatever identifies the run."""


def write_report(path: Path, contents: ReportContents) -> None:
    """Write the page."""
    page = render_report(contents)
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render_report(contents: ReportContents) -> str:
    """The page as one HTML string."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    results = contents.results
    # Slices and exposure are shown for one protocol, the first that was evaluated.
    shown_protocol = next(protocol for protocol in PROTOCOLS if results.under(protocol))
    summaries = results.under(shown_protocol)
    curves = _training_charts(contents.training_log)
    bar_charts = [_metric_bars(results, protocol) for protocol in ("test", "test_unseen")]
    parts = {
        "title": contents.title,
        "subtitle": describe_protocol(results, shown_protocol),
        "num_colours": NUM_COLOURS,
        "sections": _sections(contents, bool(curves)),
        "headline": _headline(results, shown_protocol),
        "confidence": f"{results.settings['confidence']:.0%}",
        "seeds": ", ".join(str(seed) for seed in results.seeds),
        "first": next(iter(summaries)),
        "shown_metrics": shown_metrics(results),
        "main_metric": main_metric(results),
        "protocols": [_protocol_table(results, protocol) for protocol in PROTOCOLS if results.under(protocol)],
        "bar_charts": [chart for chart in bar_charts if chart],
        "comparisons": _comparison_rows(results, shown_protocol),
        "curves": curves,
        "code_use": _code_use(contents.tokenizer_report),
        "slices": _slice_rows(results, shown_protocol),
        "exposure": _exposure_rows(summaries),
        "examples": contents.examples,
        "examples_note": "Users drawn at random among hits (marked) and among misses.",
        "config": contents.config_yaml,
        "versions": list(contents.versions.items()),
    }
    return environment.get_template(_TEMPLATE).render(parts)


def _sections(contents: ReportContents, has_curves: bool) -> list[tuple[str, str]]:
    sections = [
        ("results", "Results", True),
        ("training", "Training", has_curves),
        ("codes", "Code use", bool(contents.tokenizer_report)),
        ("slices", "Slices", True),
        ("popularity", "Popularity bias", True),
        ("users", "Some users", bool(contents.examples)),
        ("made", "How it was made", True),
    ]
    return [(name, heading) for name, heading, present in sections if present]


def _headline(results: Results, protocol: str) -> list[dict[str, str]]:
    name, summary = next(iter(results.under(protocol).items()))
    main = main_metric(results)
    exactness = {
        f"exact lists by {beams} beams": f"{share:.0%}" for beams, share in results.equals_exact.get(name, {}).items()
    }
    figures = {
        f"{main}, {name}": f"{summary.metrics[main].mean:.4f}",
        main.replace("recall", "ndcg"): f"{summary.metrics[main.replace('recall', 'ndcg')].mean:.4f}",
        "invalid items": f"{summary.invalid_rate:.2%}",
        next(iter(summary.exposure)): f"{next(iter(summary.exposure.values())):.1%}",
        "minutes of training": f"{summary.minutes:.1f}",
        "parameters": format_tick(summary.parameters),
        **exactness,
    }
    return [{"name": label, "value": value} for label, value in figures.items()]


def _protocol_table(results: Results, protocol: str) -> dict[str, Any]:
    shown = shown_metrics(results)
    figures = published_figures(results.dataset, published_protocol(protocol)) if protocol.startswith("test") else []
    return {
        "title": describe_protocol(results, protocol),
        "rows": [_summary_row(name, each, results) for name, each in results.under(protocol).items()],
        "published": [
            {
                "model": row.model,
                "source": row.source,
                "evidence": row.evidence.replace("_", "-"),
                "note": row.note,
                "cells": [f"{row.metrics[metric]:.4f}" if metric in row.metrics else "" for metric in shown],
            }
            for row in figures
        ],
    }


def _summary_row(name: str, summary: RecommenderSummary, results: Results) -> dict[str, Any]:
    low, high = summary.metrics[main_metric(results)].interval
    figures = [summary.metrics[metric] for metric in shown_metrics(results)]
    return {
        "name": name,
        "cells": [
            {"mean": f"{each.mean:.4f}", "spread": "" if each.spread is None else f"{each.spread:.4f}"}
            for each in figures
        ],
        "interval": f"{low:.4f} to {high:.4f}",
        "invalid": f"{summary.invalid_rate:.2%}",
        "minutes": f"{summary.minutes:.1f}",
        "parameters": f"{summary.parameters:,}",
    }


def _metric_bars(results: Results, protocol: str) -> Markup:
    main = main_metric(results)
    bars = [
        Bar(name, summary.metrics[main].mean, summary.metrics[main].interval, colour=min(number, 1))
        for number, (name, summary) in enumerate(results.under(protocol).items())
    ]
    return Markup(bar_chart(bars, f"{main}, {TITLES[protocol].lower()}"))


def _comparison_rows(results: Results, protocol: str) -> dict[str, Any] | None:
    comparisons = results.comparisons.get(protocol)
    if not comparisons:
        return None
    main = main_metric(results)
    rows = []
    for name, differences in comparisons.items():
        for metric in (main, main.replace("recall", "ndcg")):
            each = differences[metric]
            samples = results.settings["bootstrap_samples"]
            rows.append(
                {
                    "name": name,
                    "metric": metric,
                    "difference": f"{each.difference:+.4f}",
                    "interval": f"{each.interval[0]:+.4f} to {each.interval[1]:+.4f}",
                    # No resampling on the other side bounds p by what so many resamplings can tell.
                    "p_value": f"{each.p_value:.3f}" if each.p_value else f"< {2 / samples:.3g}",
                }
            )
    return {"title": TITLES[protocol].lower(), "rows": rows}


def _training_charts(log: Sequence[dict[str, Any]]) -> list[Markup]:
    def curve(key: str, name: str) -> Series:
        return Series(name, [(entry["step"], entry[key]) for entry in log if key in entry])

    keys = dict.fromkeys(key for entry in log for key in entry)
    losses = [curve(key, key.replace("_", " ")) for key in keys if key == "loss" or key.startswith("loss_")]
    charts = [line_chart(losses, "step", "Training loss (nats)")]
    for metric in ("recall", "ndcg"):
        evaluated = [key for key in keys if key.startswith(f"eval_{metric}@")]
        curves = [curve(key, key.removeprefix("eval_")) for key in evaluated]
        charts.append(line_chart(curves, "step", f"Validation {'Recall' if metric == 'recall' else 'NDCG'}"))
    if "targets_per_s" in keys:
        charts.append(line_chart([curve("targets_per_s", "targets")], "step", "Trained targets a second"))
    return [Markup(chart) for chart in charts if chart]


def _code_use(report: dict[str, Any]) -> dict[str, Any] | None:
    if not report:
        return None
    before, after, neighbours = report["before"], report["after"], report["neighbours"]
    facts = {
        "items": report["num_items"],
        "quantizer": report["quantizer"],
        "distinct semantic IDs, as quantised": before["num_distinct"],
        "items that share theirs, as quantised": before["num_colliding"],
        "largest bucket, as quantised": before["largest_bucket"],
        "collision policy": report["policy"],
        "items that share theirs, after it": after["num_colliding"],
        "reconstruction error, share of the variance": report["relative_error"],
    }
    columns = ("num_codes", "used", "dead", "perplexity", "largest")
    levels = [[str(number), *(_format(level[key]) for key in columns)] for number, level in _numbered(report["levels"])]
    use = [
        Series(f"level {number}", [(place, count) for place, count in _numbered(sorted(level["counts"], reverse=True))])
        for number, level in _numbered(report["levels"])
    ]
    agreement = [
        Series("nearest neighbours", _numbered(neighbours["by_prefix"])),
        Series("by chance", _numbered(neighbours["by_chance"])),
    ]
    charts = [
        line_chart(use, "code, most used first", "Items a code", logarithmic_x=True),
        line_chart(agreement, "first codes compared", "Share of pairs with the same first codes"),
    ]
    return {
        "facts": [(name, _format(value)) for name, value in facts.items()],
        "columns": ["level", *(column.removeprefix("num_") for column in columns)],
        "levels": levels,
        "charts": [Markup(chart) for chart in charts if chart],
    }


def _numbered(values: Sequence[Any]) -> list[tuple[int, Any]]:
    return list(enumerate(values, start=1))


def _slice_rows(results: Results, protocol: str) -> dict[str, Any]:
    table = slice_table(results, protocol)
    return {
        "metric": " / ".join(table.metrics),
        "title": TITLES[protocol].lower(),
        "note": table.note,
        "columns": [{"name": name, "rows": f"{count:,}"} for name, count in table.slices.items()],
        "rows": [{"name": name, "cells": cells} for name, cells in table.rows.items()],
    }


def _exposure_rows(summaries: dict[str, RecommenderSummary]) -> dict[str, Any]:
    keys = list(dict.fromkeys(key for summary in summaries.values() for key in summary.exposure))
    return {
        "columns": [key.replace("_", " ") for key in keys],
        "rows": [
            {"name": name, "cells": [_format_exposure(key, summary.exposure.get(key)) for key in keys]}
            for name, summary in summaries.items()
        ],
    }


def _format_exposure(key: str, value: float | None) -> str:
    return _format(value) if value is None or key.startswith("gini") else f"{value:.1%}"


def _format(value: str | float | None) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if abs(value) >= 1 else f"{value:.4f}"
