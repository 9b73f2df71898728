"""Decoding by one, two and more processes that share a model out: `python -m benchmarks.parallel`.

    [--processes 1,2] [--items N] [--json PATH] [--quick]

An untrained model of three levels of 2048 codes over a catalogue of random distinct IDs, with an own vector for each
item, prefix vectors and rescoring, answers the same 16 requests at 50 beams. All processes run on this machine, over
gloo and shared memory where there is no accelerator: what they gain is memory. Their time says what sharing costs here,
not what a network between hosts would make of it.

One entry a number of processes, the largest of any process:
- `held_mb`: all tensors that a process keeps between requests, and of these `blocks_mb`, those of the blocks, and
  `items_mb`, those that grow with the catalogue.
- `encode_ms` and `step_ms`: reading the histories, and one level of the search, by the clock; `encode_processor_ms` and
  `step_processor_ms` by the processor's, which others who use the machine disturb less. The best of several turns.
- `encode_mb` and `step_mb`: what a process hands to others' sums and lists in that time, counted call by call.
- `same_items`: share of the requests that are answered with the items of the first number of processes.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.figures import publish
from benchmarks.trie import NUM_BEAMS, NUM_CODES, NUM_LEVELS, NUM_REQUESTS, make_codes
from onerec.decoding.parallel.processes import Processes
from onerec.decoding.parallel.recommender import ParallelRecommender
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.trie import Trie
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec

FULL_ITEMS, QUICK_ITEMS, NUM_ANSWERS = 10**6, 10**5, 10
_MB = 1e6


@dataclass(frozen=True)
class Job:
    """What every process measures."""

    num_items: int
    num_turns: int


class Traffic(TorchDispatchMode):
    """Counts the bytes of the tensors that this process hands to collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            given = args[1] if "allgather" in func.name() else args[0]
            self.num_bytes += sum(tensor.nbytes for tensor in _tensors(given, set()))
        return func(*args, **(kwargs or {}))


def make_recommender(num_items: int) -> OneRecRecommender:
    """The same in every process."""
    codes_NL, sizes = make_codes(num_items), (NUM_CODES,) * NUM_LEVELS
    torch.manual_seed(0)
    options = {"prefix_vectors": True, "item_head_weight": 1.0, "bos_reads_context": True}
    model = OneRec(OneRecConfig(sizes, num_items, d_model=128, num_heads=4, d_ff=512, **options)).eval()
    model.set_codes(codes_NL, "random")
    return OneRecRecommender(model, Trie.from_table(codes_NL, sizes), NUM_BEAMS, rescoring=1.0)


def measure(job: Job) -> dict[str, Any]:
    """In each process: its figures, and the items that were found."""
    torch.set_num_threads(1)
    processes = Processes.join() if Processes.are_several() else None
    recommender = make_recommender(job.num_items)
    if processes is not None:
        recommender = ParallelRecommender(recommender, processes)
    generator = np.random.default_rng(1)
    histories = [generator.integers(0, job.num_items, 50) for _ in range(NUM_REQUESTS)]
    context = recommender.encode(histories)
    encode = best_of(lambda: recommender.encode(histories), job.num_turns)
    search = best_of(lambda: recommender.search(context, NUM_ANSWERS), job.num_turns)
    figures = {
        **held(recommender),
        **{f"encode_{name}": figure for name, figure in encode.items()},
        **{f"step_{name}": figure / NUM_LEVELS for name, figure in search.items()},
    }
    items_BK = recommender.search(context, NUM_ANSWERS).items_BK
    if processes is not None:
        processes.leave()
    return {"figures": figures, "items": items_BK}


def best_of(program: Callable[[], object], num_turns: int) -> dict[str, float]:
    """Least milliseconds of a program's turns, after one in which its traffic is counted."""
    with Traffic() as traffic:
        program()
    clock, processor = [], []
    for _ in range(num_turns):
        begins = time.perf_counter(), time.process_time()
        program()
        clock.append(time.perf_counter() - begins[0])
        processor.append(time.process_time() - begins[1])
    return {"ms": min(clock) * 1e3, "processor_ms": min(processor) * 1e3, "mb": traffic.num_bytes / _MB}


def held(recommender: OneRecRecommender) -> dict[str, float]:
    """Megabytes of all tensors that a recommender keeps, of its blocks, and of what grows with the catalogue."""
    model, seen = recommender.model, set[int]()
    blocks = _megabytes([*model.encoder.blocks.parameters(), *model.decoder.blocks.parameters()], seen)
    embedding = model.encoder.embedding
    grows = embedding.items
    embedding.items = None
    fixed = _megabytes([*model.parameters()], seen)
    embedding.items = grows
    items = _megabytes(vars(recommender), seen)
    return {"held_mb": blocks + fixed + items, "blocks_mb": blocks, "items_mb": items}


def _megabytes(holder: object, seen: set[int]) -> float:
    return sum(tensor.nbytes for tensor in _tensors(holder, seen)) / _MB


def _tensors(holder: object, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that can be reached, once."""
    if id(holder) in seen or isinstance(holder, type):
        return
    seen.add(id(holder))
    if isinstance(holder, Tensor):
        yield holder
    elif isinstance(holder, dict):
        for part in list(holder.values()):
            yield from _tensors(part, seen)
    elif isinstance(holder, list | tuple):
        for part in holder:
            yield from _tensors(part, seen)
    elif hasattr(holder, "__dict__"):
        yield from _tensors(vars(holder), seen)


def by_processes(number: int, job: Job) -> list[dict[str, Any]]:
    """What each of so many processes measures."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id="benchmark",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
    )
    results = elastic_launch(config, measure)(job)
    return [results[rank] for rank in range(number)]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parallel", description=__doc__)
    parser.add_argument("--processes", default="1,2", help="numbers of processes, with commas (default: 1,2)")
    parser.add_argument("--items", type=int, help="in the catalogue (default: 10^6)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="10^5 items, fewer turns: under a minute")
    arguments = parser.parse_args(argv)
    num_items = arguments.items or (QUICK_ITEMS if arguments.quick else FULL_ITEMS)
    job = Job(num_items, num_turns=3 if arguments.quick else 10)
    numbers = [int(number) for number in arguments.processes.split(",")]
    rows, first = [], None
    for number in numbers:
        measured = by_processes(number, job)
        items_BK = measured[0]["items"]
        first = items_BK if first is None else first
        names = measured[0]["figures"]
        row = {name: max(process["figures"][name] for process in measured) for name in names}
        rows.append({"processes": number, **row, "same_items": (items_BK == first).all(axis=1).mean()})
        print(", ".join(f"{key} {value:.4g}" for key, value in rows[-1].items()), flush=True)
    figures: dict[str, Any] = {key: [float(f"{row[key]:.4g}") for row in rows] for key in rows[0]}
    settings = {"codes_per_level": [NUM_CODES] * NUM_LEVELS, "beams": NUM_BEAMS, "requests": NUM_REQUESTS}
    publish({**figures, "items": num_items, **settings}, arguments.json)


if __name__ == "__main__":
    main()
