"""Trained targets a second against transformers' T5: `python -m benchmarks.training [--json PATH] [--quick]`.

Both train on the same synthetic users, whose history lengths are distributed as those of Amazon-2014 Beauty, with the
same semantic IDs (three levels of 256 codes and a suffix), in layers of TIGER's shape: 4 + 4 layers, width 128, 6 heads
of 64, feed-forward 1024, dropout 0.1, fused AdamW.

- T5 trains as TIGER does: every prefix of a history is a sample of 20 items x 4 codes at most, 256 samples a step.
- OneRec trains as `train.py` does, by its own Trainer: a position an item, every position a target. `targets_per_s` is
  for codes alone, what T5 learns too; `targets_per_s_with_item_head` adds the item embedding and the item head. A
  user's first item is a target of OneRec's and not of T5's, which has no history to read for it.

Both are timed in float32 and, where the hardware multiplies bfloat16, under bfloat16 autocast, each against the other
in the same precision; `ratio_vs_t5` is OneRec as `train.py` runs it by default against T5 as transformers does, in
float32. They take turns: in the second half of OneRec's run a step of T5 of either precision comes after every few of
its own, so that a machine that slows down slows all of them, and each figure is a median. Nothing is timed while it
starts up, validates or saves; OneRec's first half, in which every shape of batch asks the system for memory anew, and
the lines that a turn of T5 falls into do not count. `flops_utilisation` is OneRec's model FLOPs over the best rate of a
1024 x 1024 product of the same precision on the same machine.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.figures import publish
from kernels.memory import keep_freed_memory
from onerec.baselines.tiger import PrefixSamples, TigerSettings, build_t5
from onerec.data.histories import Histories
from onerec.model.precision import Precision, choose_precision
from onerec.model.settings import ModelSettings
from onerec.training.pretraining import build_model, training_windows
from onerec.training.settings import TrainingSettings
from onerec.training.throughput import measure_matmul_gflops
from onerec.training.trainer import OneRecTrainer
from tokenizer.table import SemanticIdTable

NUM_ITEMS = 12_101
NUM_CODES = 256
LOGGED_STEPS, TURN_STEPS = 2, 8  # of OneRec in a line of its log, and between two turns of T5
MAX_TURNS = 100
FLOAT32: Precision = "float32"
# Users of Beauty by the length of their training history; the last entry stands for 31 to 202 events.
BEAUTY_LENGTHS = {
    3: 7162, 4: 4221, 5: 2680, 6: 1811, 7: 1366, 8: 881, 9: 695, 10: 558, 11: 439, 12: 361, 13: 262, 14: 207, 15: 213,
    16: 141, 17: 118, 18: 112, 19: 117, 20: 84, 21: 66, 22: 73, 23: 74, 24: 61, 25: 54, 26: 44, 27: 44, 28: 38, 29: 30,
    30: 38, 45: 413,
}  # fmt: skip
TIGER_SHAPE = TigerSettings()
ONEREC_SHAPE = ModelSettings(
    d_model=TIGER_SHAPE.width,
    num_heads=TIGER_SHAPE.num_heads,
    head_dim=TIGER_SHAPE.head_width,
    d_ff=TIGER_SHAPE.feed_forward_width,
    activation="relu",
    num_context_layers=TIGER_SHAPE.num_layers,
    num_decoder_layers=TIGER_SHAPE.num_layers,
    max_history_items=TIGER_SHAPE.max_history_items,
    dropout=TIGER_SHAPE.dropout,
    item_embedding=False,
    item_head_weight=0.0,
)


@dataclass(frozen=True)
class Sizes:
    """How much is trained to be timed."""

    num_users: int
    max_positions_per_step: int
    t5_batch_size: int


FULL = Sizes(num_users=8_000, max_positions_per_step=2048, t5_batch_size=256)
QUICK = Sizes(num_users=600, max_positions_per_step=512, t5_batch_size=32)


class Turns(TrainerCallback):
    """Calls something at every `TURN_STEPS`-th step of the second half of a training."""

    def __init__(self, turn: Callable[[], object]) -> None:
        self.turn = turn

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Before a step."""
        if _steps_after_turn(state.global_step, state) == 0:
            self.turn()


def _steps_after_turn(step: int, state: TrainerState) -> int | None:
    """Steps from the last turn to this one; None in the first half."""
    half = state.max_steps // 2 // LOGGED_STEPS * LOGGED_STEPS
    return None if step < half else (step - half) % TURN_STEPS


def make_histories(num_users: int, seed: int = 0) -> Histories:
    """Training events of users as long as Beauty's, over items of skewed popularity."""
    rng = np.random.default_rng(seed)
    weights = np.array(list(BEAUTY_LENGTHS.values()), dtype=float)
    lengths = rng.choice(list(BEAUTY_LENGTHS), size=num_users, p=weights / weights.sum())
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = (NUM_ITEMS * rng.random(offsets[-1]) ** 2).astype(np.int32)
    return Histories(offsets, items, np.arange(offsets[-1]), np.zeros(offsets[-1], dtype=np.uint8))


def make_table(seed: int = 0) -> SemanticIdTable:
    """Random codes in three levels; a suffix level tells apart items that share them."""
    codes_NL = np.random.default_rng(seed).integers(NUM_CODES, size=(NUM_ITEMS, 3), dtype=np.int32)
    _, ids_N = np.unique(codes_NL, axis=0, return_inverse=True)
    order = np.argsort(ids_N, kind="stable")
    suffixes_N = np.empty(NUM_ITEMS, dtype=np.int32)
    suffixes_N[order] = np.arange(NUM_ITEMS) - np.searchsorted(ids_N[order], ids_N[order])
    levels = (NUM_CODES,) * 3 + (int(suffixes_N.max()) + 1,)
    return SemanticIdTable.of_unique(np.column_stack([codes_NL, suffixes_N]), levels, map(str, range(NUM_ITEMS)))


def train_t5(histories: Histories, table: SemanticIdTable, sizes: Sizes, precision: Precision) -> Iterator[float]:
    """Train T5, a step at a time: targets a second of each."""
    samples = PrefixSamples(histories, table, TIGER_SHAPE.max_history_items)
    model = build_t5(samples.codes, TIGER_SHAPE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=TIGER_SHAPE.learning_rate, fused=True)
    for rows in samples.batches(sizes.t5_batch_size, MAX_TURNS, seed=0):
        started = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(**samples.collate(rows)).loss
        loss.backward()
        optimizer.step()
        yield sizes.t5_batch_size / (time.perf_counter() - started)


def train_onerec(
    settings: ModelSettings,
    histories: Histories,
    table: SemanticIdTable,
    sizes: Sizes,
    precision: Precision,
    turn: Callable[[], object],
) -> dict[str, float]:
    """Train OneRec, with turns of something else in between: targets a second and FLOPs utilisation by its own log."""
    model = build_model(settings, table)
    training = TrainingSettings(
        epochs=2,
        evaluate_every_epochs=2,
        max_positions_per_step=sizes.max_positions_per_step,
        logging_steps=LOGGED_STEPS,
        warmup_steps=0,
        precision=precision,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = OneRecTrainer(
            model,
            training_windows(histories, model),
            training,
            Path(folder),
            seed=0,
            validate=lambda _: {training.selection_metric: 0.0},
            on_best=lambda _model, _step: None,
        )
        trainer.add_callback(Turns(turn))
        trainer.train()
    lines = [line for line in trainer.state.log_history if "targets_per_s" in line]
    # One that began in the first half does not count, nor one that began with a turn, whose time it holds.
    counted = [line for line in lines if _steps_after_turn(int(line["step"]) - LOGGED_STEPS, trainer.state)]
    return {key: float(np.median([line[key] for line in counted])) for key in ("targets_per_s", "flops_utilisation")}


def measure_precision(
    histories: Histories, table: SemanticIdTable, sizes: Sizes, precision: Precision
) -> dict[str, float]:
    """Time OneRec in one precision, in turns with T5 in the same and in float32."""
    rivals = {each: train_t5(histories, table, sizes, each) for each in sorted({precision, FLOAT32})}
    rates: dict[Precision, list[float]] = {rival: [next(steps)] for rival, steps in rivals.items()}

    def turn() -> None:
        for rival, steps in rivals.items():
            rates[rival].append(next(steps))

    onerec = train_onerec(ONEREC_SHAPE, histories, table, sizes, precision, turn)
    whole = ONEREC_SHAPE.model_copy(update={"item_embedding": True, "item_head_weight": 1.0})
    with_item_head = train_onerec(whole, histories, table, sizes, precision, turn=lambda: None)
    t5_targets_per_s = {rival: float(np.median(found[1:])) for rival, found in rates.items()}  # the first starts up
    return {
        "targets_per_s": round(onerec["targets_per_s"], 1),
        "t5_targets_per_s": round(t5_targets_per_s[precision], 2),
        "ratio_vs_t5": round(onerec["targets_per_s"] / t5_targets_per_s[precision], 1),
        "ratio_vs_float32_t5": round(onerec["targets_per_s"] / t5_targets_per_s[FLOAT32], 1),
        "matmul_peak_gflops": round(measure_matmul_gflops(dtype=getattr(torch, precision)), 1),
        "flops_utilisation": round(onerec["flops_utilisation"], 4),
        "targets_per_s_with_item_head": round(with_item_head["targets_per_s"], 1),
    }


def measure(sizes: Sizes) -> dict[str, Any]:
    """Time both models in every precision that the hardware multiplies."""
    torch.set_flush_denormal(True)
    histories, table = make_histories(sizes.num_users), make_table()
    default = choose_precision("auto")
    precisions: set[Precision] = {FLOAT32, default}
    torch.manual_seed(0)
    figures = {precision: measure_precision(histories, table, sizes, precision) for precision in sorted(precisions)}
    return {"ratio_vs_t5": figures[default]["ratio_vs_float32_t5"], "default_precision": default} | figures


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="fewer users and smaller batches: about a minute")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    sizes = QUICK if arguments.quick else FULL
    settings = {"sizes": vars(sizes), "items": NUM_ITEMS, "threads": torch.get_num_threads()}
    publish(measure(sizes) | settings, arguments.json)


if __name__ == "__main__":
    main()
