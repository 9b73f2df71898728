"""A training step over 10^4 to 10^7 items: `python -m benchmarks.catalogue_training [--json PATH] [--quick]`.

The same small model takes the same batch over each catalogue, every item with a vector of its own, in a process of its
own on one thread. With the sparse update (`training.sparse_tables`) gradient and optimizer touch the rows that the
step has read: `ms` is the CPU time of a step (forward, backward, update), the best of a few after one that is not
timed; `step_mib` the most memory that steps add to what is held at rest (weights, two moments, codes), `rest_mib`.
The dense update (`dense_ms`, `dense_step_mib`) goes over every row; null where it would need too much memory.
`cost_per_item` is the sparse step's time an item against that of the smallest catalogue: 1 is linear growth, below
it the step grows slower than the catalogue.
"""

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.figures import publish
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from onerec.training.optimizers import build_optimizer, clip_gradients, use_sparse_gradients
from onerec.training.settings import TrainingSettings

CODES_PER_LEVEL = (256, 256, 256)
WIDTH, BATCH, HISTORY = 32, 32, 20
_NUM_STEPS = 4


@dataclass(frozen=True)
class Scale:
    """Sizes of the catalogue, and the largest that the dense update is measured over."""

    items: tuple[int, ...]
    largest_dense: int


FULL = Scale((10_000, 100_000, 1_000_000, 10_000_000), largest_dense=1_000_000)
QUICK = Scale((10_000, 100_000), largest_dense=100_000)


def measure(scale: Scale) -> dict[str, Any]:
    """All catalogues, the smallest first."""
    rows = []
    for num_items in tqdm(scale.items, desc="catalogue", unit="size"):
        row = _measured_apart(num_items, sparse=True)
        dense = _measured_apart(num_items, sparse=False) if num_items <= scale.largest_dense else {}
        row["dense_ms"], row["dense_step_mib"] = dense.get("ms"), dense.get("step_mib")
        rows.append(row)
    costs = np.array([row["ms"] / row["items"] for row in rows])
    return {name: [row[name] for row in rows] for name in rows[0]} | {
        "cost_per_item": [round(float(ratio), 5) for ratio in costs / costs[0]]
    }


def _measured_apart(num_items: int, sparse: bool) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure_catalogue, num_items, sparse).result()


def measure_catalogue(num_items: int, sparse: bool) -> dict[str, Any]:
    """Steps over one catalogue, in a process that has done nothing else."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    settings = TrainingSettings(sparse_tables=sparse)
    model, batch = make_model(num_items), make_batch(num_items)
    if sparse:
        use_sparse_gradients(model)
    optimizer = build_optimizer(model, settings)
    take_step(model, optimizer, batch, settings)
    rest_mib = _restart_peak()
    seconds = []
    for _ in range(_NUM_STEPS):
        begin = time.process_time()
        take_step(model, optimizer, batch, settings)
        seconds.append(time.process_time() - begin)
    return {
        "items": num_items,
        "ms": round(1e3 * min(seconds), 2),
        "rest_mib": round(rest_mib),
        "step_mib": round(_memory_mib("VmHWM") - rest_mib, 1),
    }


def make_model(num_items: int) -> OneRec:
    """A small model whose cost beside the item table does not depend on the catalogue."""
    torch.manual_seed(0)
    shape = {"d_model": WIDTH, "d_ff": 4 * WIDTH, "num_heads": 2, "max_history_items": HISTORY, "dropout": 0.0}
    model = OneRec(OneRecConfig(CODES_PER_LEVEL, num_items, **shape)).train()
    codes_NL = np.random.default_rng(0).integers(0, CODES_PER_LEVEL, (num_items, len(CODES_PER_LEVEL)), dtype=np.int32)
    model.set_codes(codes_NL, "hash-of-no-table")
    return model


def make_batch(num_items: int) -> dict[str, torch.Tensor]:
    """Histories of one length, items drawn evenly, so that the rows read are spread over the whole table."""
    items = torch.from_numpy(np.random.default_rng(1).integers(num_items, size=(BATCH, HISTORY + 1)))
    return {"input_ids": items[:, :-1] + 1, "target_items": items}


def take_step(
    model: OneRec, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], settings: TrainingSettings
) -> None:
    """One optimizer step, as the trainer takes it."""
    model(**batch).loss.backward()
    clip_gradients(model.parameters(), settings.max_gradient_norm)
    optimizer.step()
    model.zero_grad()


def _restart_peak() -> float:
    """Memory now, from which the peak is counted anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory_mib("VmRSS")


def _memory_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.catalogue_training", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="catalogues of 10^4 and 10^5 items, seconds")
    arguments = parser.parse_args(argv)
    publish(measure(QUICK if arguments.quick else FULL), arguments.json)


if __name__ == "__main__":
    main()
