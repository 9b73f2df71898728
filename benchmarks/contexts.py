"""Kinds of context on one run's data: `python -m benchmarks.contexts [--run runs/demo] [--json PATH] [--quick]`.

The run's own data, semantic IDs, model and training settings, with another context each time:

- `transformer`, `hstu`, `hstu_times`: a causal encoder of softmax attention and feed-forwards, of HSTU blocks, and of
  HSTU blocks that know the time between two events.
- `encoder_decoder`: the technical report's bidirectional encoder, which trains one target a pass; for `--epochs` of its
  own, as one of them costs as much as dozens of the others'.
- `lazy`: OneRec-V2's context without an encoder, whose layers go to the decoder.

Each line tells Recall and NDCG at 10 on the validation targets with bootstrapped intervals over users, of the epoch of
best NDCG; `loss`, the lowest sum of the levels' cross-entropies on those targets; and the cost of a target in training,
forward and backward: GFLOPs counted, milliseconds by the trainer's own clock. `equal_loss` is the highest of those
lowest losses, which all contexts reach: `*_to_equal_loss` is what each has spent by the validation that first shows it.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.figures import publish
from kernels.denormals import flushed_denormals
from kernels.memory import keep_freed_memory
from onerec.config import RunConfig
from onerec.data.batches import TrainingWindows, bucketed_batches
from onerec.data.features import FittedPathways, fit_pathways, user_profiles
from onerec.data.histories import Split
from onerec.data.pathways import EventSource, WindowPathways
from onerec.evaluation.evaluator import evaluate
from onerec.evaluation.settings import EvaluationSettings
from onerec.model.flops import training_flops
from onerec.model.onerec import OneRec
from onerec.model.settings import ModelSettings
from onerec.pipeline import Pipeline
from onerec.training.pretraining import Fitted, build_model, training_windows
from onerec.training.settings import TrainingSettings
from onerec.training.trainer import OneRecTrainer
from tokenizer.fit import load_item_vectors
from tokenizer.settings import load_settings

_METRICS = ("recall@10", "ndcg@10")
_LOSS_POSITIONS = 4096  # context positions of a batch whose loss is measured


@dataclass(frozen=True)
class Scale:
    """Passes of the one-target form and of the others, windows of a pass, targets to validate on; None: the run's."""

    encoder_decoder_epochs: int
    epochs: int | None = None
    max_windows: int | None = None
    max_targets: int | None = None
    bootstrap_samples: int = 1000


FULL, QUICK = Scale(1), Scale(1, epochs=1, max_windows=60, max_targets=60, bootstrap_samples=50)


@dataclass(frozen=True)
class Moment:
    """What a validation shows, and what the training before it has cost."""

    targets: int
    loss: float
    metrics: dict[str, float]
    intervals: dict[str, list[float]]


def contexts(model: ModelSettings) -> dict[str, ModelSettings]:
    """The run's model with each kind of context."""
    num_layers = model.num_context_layers + model.num_decoder_layers
    changes: dict[str, dict[str, Any]] = {
        "transformer": {},
        "hstu": {"context_block": "hstu"},
        "hstu_times": {"context_block": "hstu", "pathways": {"times": True}},
        "encoder_decoder": {"context": "bidirectional"},
        "lazy": {"context": "lazy", "num_decoder_layers": num_layers, "bos_reads_context": None, "path_sampling": 0.0},
    }
    of_contexts = ("context", "context_block", "pathways", "embedding_dim", "num_kv_heads", "num_kv_layers")
    plain = model.model_dump(exclude={*of_contexts, "separate_values"})
    return {name: ModelSettings.model_validate(plain | change) for name, change in changes.items()}


def measure(pipeline: Pipeline, scale: Scale) -> dict[str, Any]:
    """Train and validate with every context, one after the other."""
    figures: dict[str, Any] = {}
    moments: dict[str, list[Moment]] = {}
    for name, settings in contexts(pipeline.config.model).items():
        epochs = scale.encoder_decoder_epochs if name == "encoder_decoder" else scale.epochs
        figures[name], moments[name] = train(pipeline, settings, epochs, scale)
    equal_loss = max(min(moment.loss for moment in seen) for seen in moments.values())
    for name, seen in moments.items():
        targets = next(moment.targets for moment in seen if moment.loss <= equal_loss)
        figures[name] |= {
            "targets_to_equal_loss": targets,
            "tflops_to_equal_loss": targets * figures[name]["gflops_per_target"] / 1e3,
            "seconds_to_equal_loss": targets * figures[name]["ms_per_target"] / 1e3,
        }
    return {"equal_loss": equal_loss, "contexts": figures}


def train(
    pipeline: Pipeline, settings: ModelSettings, epochs: int | None, scale: Scale
) -> tuple[dict[str, Any], list[Moment]]:
    """Train one model by the run's own recipe, validated after every epoch."""
    torch.manual_seed(pipeline.config.seed)
    fitted = fit_pathways(settings.pathways, pipeline.data, None) if settings.pathways else None
    vectors_NV = load_item_vectors(pipeline.folder / "tokenizer")
    model = build_model(settings, pipeline.table, Fitted(None, fitted, vectors_NV), seed=pipeline.config.seed)
    windows = first_windows(training_windows(pipeline.data.histories, model, fitted), scale.max_windows)
    held_out = first_windows(validation_windows(pipeline, model, fitted), scale.max_targets)
    training = pipeline.config.training.model_copy(
        update={"epochs": epochs or pipeline.config.training.epochs, "evaluate_every_epochs": 1, "logging_steps": 10}
    )
    seen: list[Moment] = []

    def validate(candidate: OneRec) -> dict[str, float]:
        evaluation = evaluate(pipeline.recommender(candidate), pipeline.data, Split.VALIDATION, rules(scale), False)
        found = evaluation["validation"]
        intervals = {name: [found.intervals[name].low, found.intervals[name].high] for name in _METRICS}
        loss = mean_loss(candidate, held_out)
        seen.append(Moment(windows.num_targets * (len(seen) + 1), loss, found.metrics, intervals))
        return found.metrics

    lines = run_trainer(model, windows, training, pipeline.config.seed, validate)
    best = max(seen, key=lambda moment: moment.metrics["ndcg@10"])
    figures = {
        "parameters": model.num_parameters(),
        "epochs": training.epochs,
        **{name: round(best.metrics[name], 4) for name in _METRICS},
        **{f"{name}_interval": [round(bound, 4) for bound in best.intervals[name]] for name in _METRICS},
        "loss": round(min(moment.loss for moment in seen), 4),
        "gflops_per_target": round(flops_per_target(model, windows) / 1e9, 6),
        "ms_per_target": round(1e3 / float(np.median([line["targets_per_s"] for line in lines])), 4),
    }
    return figures, seen


@flushed_denormals()
def run_trainer(
    model: OneRec, windows: TrainingWindows, training: TrainingSettings, seed: int, validate: Any
) -> list[dict[str, float]]:
    """Train to the end; the lines of the log that tell a speed, less the first where there are more."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = OneRecTrainer(
            model, windows, training, Path(folder), seed, validate, on_best=lambda _model, _step: None
        )
        trainer.train()
    lines = [line for line in trainer.state.log_history if "targets_per_s" in line]
    return lines[1:] or lines


def rules(scale: Scale) -> EvaluationSettings:
    """Validation with seen items allowed, as the paper's tables have it."""
    return EvaluationSettings(
        ks=(10,), protocols=("seen_allowed",), max_rows=scale.max_targets, bootstrap_samples=scale.bootstrap_samples
    )


def first_windows(windows: TrainingWindows, count: int | None) -> TrainingWindows:
    """So many windows of a seeded order, None for all of them."""
    if count is None:
        return windows
    kept = np.random.default_rng(0).permutation(len(windows))[:count]
    return replace(
        windows, starts=windows.starts[kept], stops=windows.stops[kept], first_targets=windows.first_targets[kept]
    )


def validation_windows(pipeline: Pipeline, model: OneRec, fitted: FittedPathways | None) -> TrainingWindows:
    """One window a validation target, with what a request would read before it."""
    histories = pipeline.data.histories
    rows = histories.targets(Split.VALIDATION)
    starts = np.maximum(histories.offsets[histories.users_of(rows)], rows - model.config.max_history_items)
    windows = TrainingWindows(histories.items, starts, rows + 1, rows, one_target=True)
    if fitted is None or model.encoder.pathways is None:
        return windows
    source = EventSource(histories, user_profiles(pipeline.data.users, fitted.spec))
    return replace(windows, pathways=WindowPathways(model.encoder.pathways.reader(), source))


@torch.inference_mode()
def mean_loss(model: OneRec, windows: TrainingWindows) -> float:
    """Mean over the targets of the sum of their levels' cross-entropies."""
    total = 0.0
    shapes = windows.num_positions, windows.num_untrained_positions
    for batch in bucketed_batches(*shapes, _LOSS_POSITIONS, seed=0, epoch=0):
        outputs = model(**windows.collate(batch))
        assert outputs.level_losses_L is not None
        total += float(outputs.level_losses_L.sum()) * len(batch)
    return total / len(windows)


def flops_per_target(model: OneRec, windows: TrainingWindows) -> float:
    """Forward and backward operations of a pass over all windows, by target."""
    positions = windows.num_positions
    halves = 1 if windows.one_target else 2  # a target of many sees half of its window on average
    mean_context = float(np.average(positions, weights=positions)) / halves
    flops = training_flops(model.config, int(positions.sum()), windows.num_targets, mean_context)
    return flops / windows.num_targets


def table_of(figures: dict[str, Any]) -> Table:
    """A line a context."""
    title = f"Validation; MFLOPs and ms of a target; TFLOPs and seconds until a loss of {figures['equal_loss']:.3f}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("context", "Recall@10", "NDCG@10", "loss", "MFLOPs", "ms", "TFLOPs", "seconds"):
        table.add_column(column, justify="left" if column == "context" else "right", no_wrap=True)
    for name, row in figures["contexts"].items():
        shown = [_with_interval(row[metric], *row[f"{metric}_interval"]) for metric in _METRICS]
        cost = (1e3 * row["gflops_per_target"], row["ms_per_target"], row["tflops_to_equal_loss"])
        numbers = [f"{row['loss']:.3f}", *(f"{value:.3g}" for value in cost), f"{row['seconds_to_equal_loss']:.1f}"]
        table.add_row(name, *shown, *numbers)
    return table


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.4f} ({low:.4f}-{high:.4f})"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contexts", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="folder of a run with data and tokenizer")
    parser.add_argument("--epochs", type=int, default=FULL.encoder_decoder_epochs, help="of encoder_decoder")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="one pass over a few windows: that it runs, no more")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    config = load_settings(RunConfig, arguments.run / "config.yaml", [])
    pipeline = Pipeline.open(config, arguments.run.parent)
    scale = QUICK if arguments.quick else replace(FULL, encoder_decoder_epochs=arguments.epochs)
    figures = measure(pipeline, scale)
    Console().print(table_of(figures))
    publish(figures | {"dataset": pipeline.data.manifest.details["source"]}, arguments.json)


if __name__ == "__main__":
    main()
