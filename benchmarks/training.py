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
float32. Neither is timed while it starts up, validates or saves: OneRec not in the first of two epochs, in which every
shape of batch asks the system for memory anew, and T5, whose batches are alike, not in its first two steps.
`flops_utilisation` is OneRec's model FLOPs over the best rate of a 1024 x 1024 product of the same precision on the
same machine.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
T5_WARMUP_STEPS = 2
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
    logging_steps: int
    t5_steps: int
    t5_batch_size: int


FULL = Sizes(num_users=8_000, max_positions_per_step=2048, logging_steps=4, t5_steps=4, t5_batch_size=256)
QUICK = Sizes(num_users=600, max_positions_per_step=512, logging_steps=2, t5_steps=1, t5_batch_size=32)


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


def measure_t5(histories: Histories, table: SemanticIdTable, sizes: Sizes, precision: Precision) -> float:
    """Targets a second of T5, after the steps that are not timed."""
    torch.manual_seed(0)
    samples = PrefixSamples(histories, table, TIGER_SHAPE.max_history_items)
    model = build_t5(samples.codes, TIGER_SHAPE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=TIGER_SHAPE.learning_rate, fused=True)
    started = 0.0
    for step, rows in enumerate(samples.batches(sizes.t5_batch_size, T5_WARMUP_STEPS + sizes.t5_steps, seed=0)):
        if step == T5_WARMUP_STEPS:
            started = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(**samples.collate(rows)).loss
        loss.backward()
        optimizer.step()
    return sizes.t5_steps * sizes.t5_batch_size / (time.perf_counter() - started)


def measure_onerec(
    settings: ModelSettings, histories: Histories, table: SemanticIdTable, sizes: Sizes, precision: Precision
) -> dict[str, float]:
    """Targets a second and FLOPs utilisation by the trainer's own log: the median of the second epoch's lines."""
    model = build_model(settings, table)
    training = TrainingSettings(
        epochs=2,
        evaluate_every_epochs=2,
        max_positions_per_step=sizes.max_positions_per_step,
        logging_steps=sizes.logging_steps,
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
        trainer.train()
    lines = [line for line in trainer.state.log_history if "targets_per_s" in line]
    lines = lines[len(lines) // 2 :]
    return {key: float(np.median([line[key] for line in lines])) for key in ("targets_per_s", "flops_utilisation")}


def measure_precision(
    histories: Histories, table: SemanticIdTable, sizes: Sizes, precision: Precision
) -> dict[str, float]:
    """Time OneRec and T5 one after the other in one precision."""
    onerec = measure_onerec(ONEREC_SHAPE, histories, table, sizes, precision)
    t5_targets_per_s = measure_t5(histories, table, sizes, precision)
    whole = ONEREC_SHAPE.model_copy(update={"item_embedding": True, "item_head_weight": 1.0})
    with_item_head = measure_onerec(whole, histories, table, sizes, precision)
    return {
        "targets_per_s": round(onerec["targets_per_s"], 1),
        "t5_targets_per_s": round(t5_targets_per_s, 2),
        "ratio_vs_t5": round(onerec["targets_per_s"] / t5_targets_per_s, 1),
        "matmul_peak_gflops": round(measure_matmul_gflops(dtype=getattr(torch, precision)), 1),
        "flops_utilisation": round(onerec["flops_utilisation"], 4),
        "targets_per_s_with_item_head": round(with_item_head["targets_per_s"], 1),
    }


def measure(sizes: Sizes) -> dict[str, Any]:
    """Time both models in every precision that the hardware multiplies."""
    torch.set_flush_denormal(True)
    histories, table = make_histories(sizes.num_users), make_table()
    default = choose_precision("auto")
    precisions: set[Precision] = {"float32", default}
    figures = {precision: measure_precision(histories, table, sizes, precision) for precision in sorted(precisions)}
    ratio = figures[default]["targets_per_s"] / figures["float32"]["t5_targets_per_s"]
    return {"ratio_vs_t5": round(ratio, 1), "default_precision": default} | figures


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument(
        "--quick", action="store_true", help="fewer users, smaller batches, one step of T5: under a minute"
    )
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    sizes = QUICK if arguments.quick else FULL
    settings = {"sizes": vars(sizes), "items": NUM_ITEMS, "threads": torch.get_num_threads()}
    publish(measure(sizes) | settings, arguments.json)


if __name__ == "__main__":
    main()
