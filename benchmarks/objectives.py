"""Training objectives on one run's data: `python -m benchmarks.objectives [--run runs/demo] [--json PATH] [--quick]`.

The run's own data, semantic IDs, model and training settings, with one objective changed each time and as many epochs:

- `plain`: the run's own.
- `weights`: a rating of 5 counts twice, one below 3 half (left out where the data have no ratings).
- `future`: three targets of ten are drawn from the next five events instead of the next one.
- `sliding`: an epoch reads one window of a history, every second one the newest.
- `apao_pointwise`, `apao_pairwise`: APAO's prefix-aware loss in its two forms, among 20 rivals.
- `adversarial`, `adversarial_by_fit`: the worst small move of the history's vectors, by option larger where it fits.
- `layer_dropout`, `graded_dropout`: rows pass blocks by; dropout that falls towards the last block.
- `teacher`, `taught`: a model twice as wide, and the run's own model with heads that learn from it.

Each is validated once, at the end, with 10, 20 and 50 beams and seen items allowed, by the beams alone. Each line tells
Recall and NDCG at 10 by beams, and the seconds of its training by the trainer's own clock; `against_plain` in the JSON
has the paired difference of Recall with its interval, bootstrapped over users.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.figures import publish
from kernels.memory import keep_freed_memory
from onerec.bundle import build_trie
from onerec.config import RunConfig
from onerec.data.histories import Histories, Split
from onerec.decoding.recommender import OneRecRecommender
from onerec.evaluation.evaluator import Evaluation, compare, evaluate
from onerec.evaluation.settings import EvaluationSettings
from onerec.model.onerec import OneRec
from onerec.model.settings import ModelSettings
from onerec.pipeline import Pipeline
from onerec.training.pretraining import pretrain
from onerec.training.settings import TrainingSettings
from tokenizer.settings import load_settings

BEAMS = (10, 20, 50)
_RATING = "rating"
_METRICS = ("recall@10", "ndcg@10")
_APAO = {"prefix_loss_weight": 0.2}  # within the paper's 0.05 to 0.4


@dataclass(frozen=True)
class Scale:
    """Users who are trained on, targets to validate on, epochs; None: the run's."""

    max_users: int | None = None
    max_targets: int | None = None
    epochs: int | None = None
    bootstrap_samples: int = 1000


FULL, QUICK = Scale(), Scale(max_users=12, max_targets=40, epochs=1, bootstrap_samples=50)


@dataclass(frozen=True)
class Objective:
    """What differs from the run's own settings."""

    model: dict[str, Any]
    training: dict[str, Any]


def objectives(model: ModelSettings, feedback: Sequence[str], teacher: Path) -> dict[str, Objective]:
    """All that are compared; `teacher` is where the one of that name will be."""
    wide = {name: 2 * getattr(model, name) for name in ("d_model", "num_heads", "d_ff")}
    weights = [{"column": _RATING, "weights": {1: 0.5, 3: 1, 5: 2}}]
    chosen = {
        "plain": Objective({}, {}),
        "weights": Objective({}, {"targets": {"weights": weights}}),
        "future": Objective({}, {"targets": {"future": {"events": 5, "share": 0.3}}}),
        "sliding": Objective({}, {"targets": {"sliding": {"newest_every": 2}}}),
        "apao_pointwise": Objective(_APAO, {}),
        "apao_pairwise": Objective({**_APAO, "prefix_rivals": 20}, {}),
        "adversarial": Objective({"adversarial_weight": 1.0}, {}),
        "adversarial_by_fit": Objective({"adversarial_weight": 1.0, "adversarial_by_fit": True}, {}),
        "layer_dropout": Objective({"layer_dropout": 0.2}, {}),
        "graded_dropout": Objective({"final_dropout": 0.0}, {}),
        "teacher": Objective(wide, {}),
        "taught": Objective({}, {"teacher": {"path": str(teacher)}}),
    }
    if _RATING not in feedback:
        del chosen["weights"]
    return chosen


def measure(pipeline: Pipeline, scale: Scale) -> dict[str, Any]:
    """Train and validate with every objective, one after the other."""
    figures: dict[str, Any] = {}
    found: dict[str, dict[int, Evaluation]] = {}
    rules = EvaluationSettings(
        ks=(10,), protocols=("seen_allowed",), max_rows=scale.max_targets, bootstrap_samples=scale.bootstrap_samples
    )
    with tempfile.TemporaryDirectory() as folder:
        root, feedback = Path(folder), list(pipeline.data.histories.feedback)
        for name, objective in objectives(pipeline.config.model, feedback, root / "teacher").items():
            model, seconds = train(pipeline, objective, scale, root / name)
            found[name] = {beams: validation(pipeline, model, beams, rules) for beams in BEAMS}
            figures[name] = {"parameters": model.num_parameters(), "seconds": round(seconds, 1)}
            for beams, evaluation in found[name].items():
                shown = {metric: round(evaluation.metrics[metric], 4) for metric in _METRICS}
                difference = compare(evaluation, found["plain"][beams], rules)["recall@10"]
                figures[name][f"{beams}_beams"] = shown | {"against_plain": asdict(difference)}
    return figures


def train(pipeline: Pipeline, objective: Objective, scale: Scale, folder: Path) -> tuple[OneRec, float]:
    """The model after the last epoch, and the seconds of its training."""
    config = pipeline.config
    epochs = scale.epochs or config.training.epochs
    once = {"epochs": epochs, "evaluate_every_epochs": epochs, "selection_metric": "ndcg@10"}
    model = pretrain(
        first_users(pipeline.data.histories, scale.max_users),
        pipeline.table,
        ModelSettings.model_validate(config.model.model_dump() | objective.model),
        TrainingSettings.model_validate(config.training.model_dump() | once | objective.training),
        lambda _: {"ndcg@10": 0.0},
        folder / "pretrain",
        folder / "checkpoints",
        inputs={},
        config_hash="",
        seed=config.seed,
        fitted=pipeline.fitted(),
    )
    log = json.loads((folder / "pretrain" / "log_history.json").read_text(encoding="utf-8"))
    return model, sum(line.get("seconds", 0.0) for line in log)


def validation(pipeline: Pipeline, model: OneRec, num_beams: int, rules: EvaluationSettings) -> Evaluation:
    """What a model shows on the validation targets with so many beams."""
    recommender = pipeline.recommender(model)
    narrow = OneRecRecommender(model, build_trie(pipeline.table), num_beams, recommender.precision, recommender.source)
    return evaluate(narrow, pipeline.data, Split.VALIDATION, rules, show_progress=False)["validation"]


def first_users(histories: Histories, count: int | None) -> Histories:
    """The events of so many users, None for all of them."""
    if count is None:
        return histories
    stop = int(histories.offsets[count])
    feedback = {name: values[:stop] for name, values in histories.feedback.items()}
    parts = {name: np.asarray(getattr(histories, name))[:stop] for name in ("items", "timestamps", "splits")}
    return replace(histories, offsets=np.asarray(histories.offsets)[: count + 1], feedback=feedback, **parts)


def table_of(figures: dict[str, Any]) -> Table:
    """A line an objective."""
    title = "Validation; Recall@10/NDCG@10 by beams"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("objective", *(f"{beams} beams" for beams in BEAMS), "seconds"):
        table.add_column(column, justify="left" if column == "objective" else "right", no_wrap=True)
    for name, row in figures.items():
        shown = ["/".join(f"{row[f'{beams}_beams'][metric]:.4f}" for metric in _METRICS) for beams in BEAMS]
        table.add_row(name, *shown, f"{row['seconds']:.1f}")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="folder of a run with data and tokenizer")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="one pass over a few users: that it runs, no more")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    config = load_settings(RunConfig, arguments.run / "config.yaml", [])
    pipeline = Pipeline.open(config, arguments.run.parent)
    scale = QUICK if arguments.quick else FULL
    figures = measure(pipeline, scale)
    Console().print(table_of(figures))
    epochs = scale.epochs or config.training.epochs
    details = {"dataset": pipeline.data.manifest.details["source"], "epochs": epochs}
    publish({"objectives": figures, **details}, arguments.json)


if __name__ == "__main__":
    main()
