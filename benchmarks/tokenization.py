"""Fit and assign semantic IDs of a large catalogue, vectors streamed from disk: minutes and peak memory.

python -m benchmarks.tokenization [--json PATH] [--quick] [--quantizer KIND]

The vectors are seeded: three levels of nested clusters with power-law sizes plus noise. Minutes are those of fitting
the codebooks, assigning every item, and handling collisions; writing the vectors is not counted. Peak memory is the
process's own, from a fresh process, libraries included.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.figures import publish
from tokenizer.collisions import CollisionCounts, resolve_collisions
from tokenizer.config import CollisionSettings, QuantizerSettings
from tokenizer.quantizers import fit_quantizer

_CHUNK_ITEMS = 50_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenization", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--quick", action="store_true", help="20,000 items x 64 dimensions in 3 x 256 codes")
    parser.add_argument("--quantizer", default="rq_kmeans", choices=["rq_kmeans", "balanced"])
    parser.add_argument("--iterations", type=int, default=10, help="Lloyd iterations a level")
    parser.add_argument("--train-rows-per-code", type=int, default=64, help="k-means trains on so many rows a code")
    arguments = parser.parse_args(argv)
    num_items, width, num_codes = (20_000, 64, 256) if arguments.quick else (1_000_000, 256, 8192)
    settings = QuantizerSettings(
        kind=arguments.quantizer,
        codes_per_level=[num_codes] * 3,
        iterations=arguments.iterations,
        train_rows_per_code=arguments.train_rows_per_code,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.npy"
        write_vectors(path, num_items, width, seed=0)
        result = {
            "items": num_items,
            "width": width,
            "codes_per_level": settings.codes_per_level,
            **measure(path, settings),
        }
    publish(result, arguments.json)
    return 0


def write_vectors(path: Path, num_items: int, width: int, seed: int) -> None:
    """Write float32 vectors of length 1 in nested clusters, a chunk at a time."""
    random = np.random.default_rng(seed)
    centres = [random.standard_normal((2000, width), dtype=np.float32) * scale for scale in (1.0, 0.6, 0.4)]
    shares = 1 / np.arange(1, 2001)
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (num_items, width))
    for start in tqdm(range(0, num_items, _CHUNK_ITEMS), desc="writing vectors"):
        rows = min(_CHUNK_ITEMS, num_items - start)
        part = 0.3 * random.standard_normal((rows, width), dtype=np.float32)
        for centre in centres:
            part += centre[random.choice(2000, rows, p=shares / shares.sum())]
        vectors[start : start + rows] = part / np.linalg.norm(part, axis=1, keepdims=True)
    vectors.flush()


def measure(path: Path, settings: QuantizerSettings) -> dict[str, Any]:
    """Minutes and CPU minutes of each stage, collisions before and after, peak memory in GiB."""
    vectors = np.load(path, mmap_mode="r")
    started, cpu_started = time.perf_counter(), time.process_time()
    quantizer, codes = fit_quantizer(vectors, settings, seed=0)
    fitted = time.perf_counter()
    resolution = resolve_collisions(
        codes,
        quantizer.codebooks,
        lambda rows: quantizer.latents(vectors[rows]),
        np.zeros(len(codes), dtype=np.int64),
        CollisionSettings(policy="reassign"),
    )
    resolved, cpu_resolved = time.perf_counter(), time.process_time()
    before = CollisionCounts.of(codes, quantizer.codes_per_level)
    after = CollisionCounts.of(resolution.codes_NL, resolution.codes_per_level)
    return {
        "quantizer": settings.kind,
        "fit_minutes": (fitted - started) / 60,
        "collision_minutes": (resolved - fitted) / 60,
        "minutes": (resolved - started) / 60,
        "cpu_minutes": (cpu_resolved - cpu_started) / 60,
        "load_average": os.getloadavg()[0],
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "colliding_before": before.num_colliding,
        "colliding_after": after.num_colliding,
    }


if __name__ == "__main__":
    raise SystemExit(main())
