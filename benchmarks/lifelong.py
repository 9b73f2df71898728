"""What the lifelong pathway costs as histories grow: `python -m benchmarks.lifelong [--json PATH] [--quick]`.

For histories of 100 to 100,000 events, one request each on one thread of a process of its own, milliseconds of CPU
time: `cluster_ms` to cluster the events into representatives, `encode_ms` for the context that reads them through the
queries, `training_ms` for forward and backward of a pass over the window after them; `mib` the most memory all of that
added. `cost_per_event` is the time of clustering and encoding by event against that of the shortest history: below 1
where it grows slower than the history.
`ratio_vs_attention` is how many times as long an encoder takes that reads every event as a position of its own, up to
the length where that is bearable.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.figures import publish
from onerec.data.clusters import representatives
from onerec.data.pathway_settings import LifelongSettings, NumberSpec, PathwaySettings, PathwaySpec
from onerec.data.pathways import UserEvents
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec

SIZES = (256, 256, 256)
SHORT_TERM_ITEMS = 20  # the technical report's
_BEST_OF = 3


@dataclass(frozen=True)
class Scale:
    """Lengths of histories, the longest that plain attention reads, and the size of what is around them."""

    lengths: tuple[int, ...]
    longest_attention: int
    num_items: int
    d_model: int


FULL = Scale((100, 1_000, 10_000, 100_000), longest_attention=10_000, num_items=100_000, d_model=128)
QUICK = Scale((100, 1_000, 10_000), longest_attention=1_000, num_items=10_000, d_model=64)


def measure(scale: Scale) -> dict[str, Any]:
    """All lengths, shortest first."""
    rows = []
    for length in tqdm(scale.lengths, desc="lifelong", unit="length"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            rows.append(process.submit(measure_length, scale, length).result())
    seconds = np.array([row["cluster_ms"] + row["encode_ms"] for row in rows]) / np.array(scale.lengths)
    return {
        "events": list(scale.lengths),
        **{name: [row[name] for row in rows] for name in rows[0]},
        "cost_per_event": [round(float(ratio), 4) for ratio in seconds / seconds[0]],
    }


def measure_length(scale: Scale, length: int) -> dict[str, Any]:
    """One history of so many events before its short-term items, in a process that has done nothing else."""
    torch.set_num_threads(1)
    events, vectors_NV = make_events(scale, length), _vectors(scale)
    model = make_model(scale, vectors_NV)
    pathways = model.encoder.pathways
    assert pathways is not None
    reader, recent = pathways.reader(), np.array([SHORT_TERM_ITEMS])
    items_BS = torch.from_numpy(events.items[-SHORT_TERM_ITEMS:])[None]
    start_mib = _peak_mib()
    cluster_s = _seconds(
        lambda: representatives(vectors_NV[events.items[:length]], LifelongSettings().max_representatives)
    )
    inputs = reader.read([events], recent, SHORT_TERM_ITEMS)
    with torch.inference_mode():
        encode_s = _seconds(lambda: model.encode(items_BS, torch.from_numpy(recent), pathways=inputs))
    train_s = _seconds(lambda: model(input_ids=items_BS + 1, target_items=items_BS, pathways=inputs).loss.backward())
    added_mib = _peak_mib() - start_mib
    attention_s = _attention_seconds(scale, events.items) if length <= scale.longest_attention else None
    return {
        "representatives": int((inputs["lifelong_items"] != 0).sum()),
        "cluster_ms": round(1e3 * cluster_s, 2),
        "encode_ms": round(1e3 * encode_s, 2),
        "training_ms": round(1e3 * train_s, 2),
        "mib": round(added_mib, 1),
        "ratio_vs_attention": None if attention_s is None else round(attention_s / (cluster_s + encode_s), 2),
    }


def make_events(scale: Scale, length: int) -> UserEvents:
    """A user who returns to favourite items, an event a minute."""
    rng, size = np.random.default_rng(0), length + SHORT_TERM_ITEMS
    items = (scale.num_items * rng.random(size) ** 2).astype(np.int64)
    ratings = rng.integers(1, 6, size).astype(np.float32)
    return UserEvents(items, 60 * np.arange(size), {"rating": ratings})


def make_model(scale: Scale, vectors_NV: np.ndarray) -> OneRec:
    """A model with the lifelong pathway alone, of the report's lengths."""
    settings = PathwaySettings(lifelong=LifelongSettings(features=("rating",)))
    numbers = (NumberSpec(name="rating", edges=(1.5, 2.5, 3.5, 4.5)),)
    spec = PathwaySpec(settings=settings, numbers=numbers, vector_width=vectors_NV.shape[1])
    model = OneRec(_configuration(scale, SHORT_TERM_ITEMS, pathways=spec.model_dump(mode="json"))).eval()
    model.set_codes(np.random.default_rng(2).integers(0, SIZES, (scale.num_items, len(SIZES))), "hash-of-no-table")
    assert model.encoder.pathways is not None
    model.encoder.pathways.vectors_NV.copy_(torch.from_numpy(vectors_NV))
    return model


def _configuration(scale: Scale, max_items: int, **changes: Any) -> OneRecConfig:
    shape: dict[str, Any] = {
        "d_model": scale.d_model,
        "d_ff": 4 * scale.d_model,
        "dropout": 0.0,
        "item_embedding": False,
    }
    return OneRecConfig(SIZES, scale.num_items, max_history_items=max_items, **shape, **changes)


def _attention_seconds(scale: Scale, items: np.ndarray) -> float:
    model = OneRec(_configuration(scale, len(items))).eval()
    items_BS, lengths_B = torch.from_numpy(items)[None], torch.tensor([len(items)])
    with torch.inference_mode():
        return _seconds(lambda: model.encode(items_BS, lengths_B))


def _vectors(scale: Scale) -> np.ndarray:
    width = LifelongSettings().vector_width
    return np.random.default_rng(1).normal(size=(scale.num_items, width)).astype(np.float32)


def _seconds(work: Callable[[], object]) -> float:
    """Best of a few runs."""
    best = float("inf")
    for _ in range(_BEST_OF):
        begin = time.process_time()
        work()
        best = min(best, time.process_time() - begin)
    return best


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lifelong", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="shorter histories, under a minute")
    arguments = parser.parse_args(argv)
    publish(measure(QUICK if arguments.quick else FULL), arguments.json)


if __name__ == "__main__":
    main()
