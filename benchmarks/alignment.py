"""Logged data before and after `--stage align`: `python -m benchmarks.alignment [--config configs/demo.yaml]`.

`[--seeds 0 1 2] [--weight rating] [--reward] [--split validation] [--set SECTION.KEY=VALUE] [--json PATH]`

For every seed the config's run is pre-trained, a reward model trained where `align.reward.preference` asks for one (or
`--reward` does), and the model aligned. The table has a line a protocol and metric: the mean over the seeds before and
after, their paired difference with its interval (users resampled, each with the mean over the seeds), and each seed's
own. `weighted` counts every target by what the user gave in the feedback column `--weight`, such as a rating.
`rewards`, where there is a reward model: GAUC of each of its towers beside the rivals', by seed, on the latest events.

Everything is kept in runs/alignment: stopped, the same command goes on. Choose settings with `--split validation`.

Shapes: S seeds, R rows (targets), M metrics.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.figures import publish
from kernels.memory import keep_freed_memory
from onerec.data.histories import Split
from onerec.errors import ConfigError
from onerec.evaluation import metrics
from onerec.evaluation.evaluator import Evaluation, evaluate
from onerec.evaluation.settings import EvaluationSettings
from onerec.model.onerec import OneRec
from onerec.pipeline import Pipeline
from rl.preference.stage import train_reward
from rl.settings import AlignedRunConfig
from rl.stage import align
from tokenizer.settings import load_settings

METRICS = ("recall@10", "ndcg@10")
WEIGHTED = "weighted ndcg@10"


@dataclass(frozen=True)
class Benchmark:
    """Which config is aligned, and what is measured."""

    config: Path
    overrides: tuple[str, ...]
    runs: Path
    split: Split
    weight: str | None
    with_reward: bool

    def seed(self, seed: int) -> tuple[Pipeline, dict[str, tuple[Evaluation, Evaluation]]]:
        """The run of one seed, made where it is not there yet, and its evaluations before and after by protocol."""
        named = load_settings(AlignedRunConfig, self.config, self.overrides)
        changes = [*self.overrides, f"seed={seed}", f"name={named.name}-{seed}"]
        config = load_settings(AlignedRunConfig, self.config, changes)
        pipeline = Pipeline.open(config.run_config(), self.runs)
        pipeline.run("data")
        self._require_weight(pipeline)
        for stage in ("tokenizer", "pretrain"):
            pipeline.run(stage)
        if self.with_reward or config.align.reward.preference is not None:
            train_reward(pipeline, config.reward)
        align(pipeline, config.align)
        before, after = (self._evaluations(pipeline, artefact) for artefact in ("pretrain", "align"))
        return pipeline, {protocol: (before[protocol], after[protocol]) for protocol in before}

    def values(self, pipeline: Pipeline, evaluation: Evaluation) -> np.ndarray:
        """`METRICS` of each row and, with a weight, the weighted one, whose mean is the weighted mean. (R, M)."""
        names = metrics.metric_names((10,))
        values_RM = metrics.metric_values(evaluation.ranks_R, (10,))[:, [names.index(name) for name in METRICS]]
        if self.weight is None:
            return values_RM
        weights_R = np.asarray(pipeline.data.histories.feedback[self.weight][evaluation.targets.rows_R], dtype=float)
        return np.column_stack([values_RM, values_RM[:, 1] * weights_R / weights_R.mean()])

    def _evaluations(self, pipeline: Pipeline, artefact: str) -> dict[str, Evaluation]:
        model: OneRec = OneRec.from_pretrained(pipeline.folder / artefact).eval().to(pipeline.processes.device)
        settings = pipeline.config.evaluation.model_copy(update={"ks": (10,), "bootstrap_samples": 1})
        return evaluate(pipeline.recommender(model), pipeline.data, self.split, settings, show_progress=False)

    def _require_weight(self, pipeline: Pipeline) -> None:
        columns = sorted(pipeline.data.histories.feedback)
        if self.weight is not None and self.weight not in columns:
            raise ConfigError(f"--weight: found {self.weight!r}, expected a feedback column: {', '.join(columns)}.")


def summarize(
    before_SRM: Sequence[np.ndarray], after_SRM: Sequence[np.ndarray], users_R: np.ndarray, rules: EvaluationSettings
) -> dict[str, dict[str, Any]]:
    """Each metric before and after, the difference with its interval, and the seeds' own."""
    before_RM, after_RM = np.mean(before_SRM, axis=0), np.mean(after_SRM, axis=0)
    drawing = (rules.bootstrap_samples, rules.confidence, rules.bootstrap_seed)
    differences = metrics.compare_paired(after_RM, before_RM, users_R, *drawing)
    return {
        name: {
            "before": float(before_RM[:, column].mean()),
            "after": float(after_RM[:, column].mean()),
            "difference": difference.difference,
            "interval": [difference.interval.low, difference.interval.high],
            "by_seed": [
                float((after[:, column] - before[:, column]).mean())
                for before, after in zip(before_SRM, after_SRM, strict=True)
            ],
        }
        for column, (name, difference) in enumerate(zip((*METRICS, WEIGHTED), differences, strict=False))
    }


def reward_figures(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """GAUC of the run's reward model and of its rivals, by tower; empty without a reward model."""
    report = pipeline.folder / "reward" / "metrics.json"
    if not report.is_file():
        return {}
    towers = json.loads(report.read_text(encoding="utf-8"))["towers"]
    return {name: {"gauc": tower.get("gauc"), **tower.get("gauc_of", {})} for name, tower in towers.items()}


def print_table(protocols: dict[str, dict[str, dict[str, Any]]], console: Console) -> None:
    """A line a protocol and metric."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("", "before", "after", "difference", "interval", "by seed"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for protocol, lines in protocols.items():
        for name, line in lines.items():
            shown = [f"{line['before']:.4f}", f"{line['after']:.4f}", f"{line['difference']:+.4f}"]
            ranges = [" ".join(f"{value:+.4f}" for value in line[key]) for key in ("interval", "by_seed")]
            table.add_row(f"{protocol} {name}", *shown, *ranges)
    console.print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Make what is missing, and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.alignment",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"), help="with a section `align`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of all training (default: 0 1 2)")
    parser.add_argument("--weight", help="feedback column that weighs the targets")
    parser.add_argument("--reward", action="store_true", help="train a reward model even where align asks for none")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--runs", type=Path, default=Path("runs/alignment"), help="folder of the runs")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    options = parser.parse_args(argv)
    keep_freed_memory()
    split = Split[options.split.upper()]
    benchmark = Benchmark(options.config, tuple(options.overrides), options.runs, split, options.weight, options.reward)
    found_S = [benchmark.seed(seed) for seed in options.seeds]
    protocols = {}
    for protocol in found_S[0][1]:
        pairs_S = [(pipeline, evaluations[protocol]) for pipeline, evaluations in found_S]
        before_SRM, after_SRM = (
            [benchmark.values(pipeline, pair[side]) for pipeline, pair in pairs_S] for side in (0, 1)
        )
        users_R, rules = pairs_S[0][1][0].targets.users_R, found_S[0][0].config.evaluation
        protocols[protocol] = summarize(before_SRM, after_SRM, users_R, rules)
    rewards = [reward_figures(pipeline) for pipeline, _ in found_S]
    asked = {"config": str(options.config), "overrides": options.overrides, "weight": options.weight}
    publish({"seeds": options.seeds, **asked, "protocols": protocols, "rewards": rewards}, options.json)
    console = Console()
    console.width = max(console.width, 160)
    print_table(protocols, console)


if __name__ == "__main__":
    main()
