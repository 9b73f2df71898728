"""The page about an alignment: why it ended, metrics before and after, and the monitor's figures step by step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onerec.evaluation.charts import Series, line_chart
from onerec.evaluation.evaluator import Evaluation
from onerec.evaluation.page import Section, write_page
from onerec.evaluation.tables import TITLES

# Captions and, for each, the keys of the log that it shows.
_CHARTS: dict[str, Sequence[str]] = {
    "reward of what is generated": ("reward",),
    "groups with the wanted item": ("hit_rate",),
    "groups whose rewards do not differ": ("groups_without_spread",),
    "share of the catalogue that is generated": ("coverage",),
    "popularity percentile of what is generated": ("popularity",),
    "samples without the trie that are items": ("legality",),
    "KL to the reference": ("kl",),
    "entropy of the policy, nats": ("entropy",),
    "log-probability of an item": ("logps/chosen", "logps/rejected"),
    "DPO's reward of an item": ("rewards/chosen", "rewards/rejected"),
    "loss": ("loss",),
}
_METRICS = ("recall", "ndcg")


def write_alignment_page(
    path: Path,
    name: str,
    log: Sequence[Mapping[str, float]],
    before: Mapping[str, Evaluation],
    after: Mapping[str, Evaluation],
    details: Mapping[str, Any],
) -> None:
    """Write the page.

    Args:
        log: the trainer's lines, each with its `step`.
        before: the pre-trained model's evaluations by protocol; `after` the aligned one's.
        details: of the manifest: `step`, `steps_trained`, `stop_reason`.
    """
    reason = details["stop_reason"]
    ended = "no stop rule was broken" if reason is None else f"stopped by the monitor: {reason}"
    subtitle = f"Weights of step {details['step']} of {details['steps_trained']} trained; {ended}."
    columns = ("protocol", "metric", "before", "after", "difference")
    sections = [
        Section("Before and after", columns=columns, rows=_rows(before, after)),
        Section("Monitor", "What was generated since the line before; held-out metrics of a sample.", _charts(log)),
    ]
    write_page(path, f"Alignment of {name}", subtitle, sections)


def _rows(before: Mapping[str, Evaluation], after: Mapping[str, Evaluation]) -> list[tuple[str, ...]]:
    pairs = [
        (TITLES[protocol], metric, before[protocol].metrics[metric], after[protocol].metrics[metric])
        for protocol in before
        for metric in before[protocol].metrics
        if metric.partition("@")[0] in _METRICS
    ]
    return [(*names, f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}") for *names, old, new in pairs]


def _charts(log: Sequence[Mapping[str, float]]) -> list[str]:
    """A chart of whatever was logged, the metrics of held-out users last."""
    logged = dict.fromkeys(key for line in log for key in line)
    held_out = {f"held-out {name}": [key for key in logged if key.startswith(f"eval_{name}@")] for name in _METRICS}
    return [
        line_chart([Series(key, points) for key in keys if (points := _points(log, key))], "step", caption)
        for caption, keys in (_CHARTS | held_out).items()
    ]


def _points(log: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [(line["step"], line[key]) for line in log if key in line]
