"""Seconds and peak memory of preparing a large event log: `python -m benchmarks.preparation [--json PATH] [--quick]`.

Makes a synthetic log (integer users, string items of skewed popularity, times over a year, one feedback column of each
kind) as three Parquet files, then runs `python -m onerec.data prepare` on it in a process of its own.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.figures import publish

_START = 1_600_000_000  # Unix seconds
_YEAR_SECONDS = 365 * 86_400
_GIBIBYTE = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """How large the synthetic log is."""

    num_events: int
    num_users: int
    num_items: int


FULL = Sizes(num_events=10_000_000, num_users=500_000, num_items=200_000)
QUICK = Sizes(num_events=500_000, num_users=25_000, num_items=10_000)


def write_log(folder: Path, sizes: Sizes, seed: int = 0) -> None:
    """Write events.parquet (in no order of time), items.parquet and users.parquet."""
    generator = np.random.default_rng(seed)
    size = sizes.num_events
    item_ids = pl.Series(np.arange(sizes.num_items)).cast(pl.String).str.zfill(9).str.replace("^", "B")
    popular = (sizes.num_items * generator.random(size) ** 3).astype(np.int64)
    watched = generator.exponential(20, size).astype(np.float32)
    pl.DataFrame(
        {
            "user_id": generator.integers(0, sizes.num_users, size),
            "item_id": item_ids.gather(popular),
            "timestamp": _START + generator.integers(0, _YEAR_SECONDS, size),
            "watch_s": watched,
            "is_like": (watched > 60).astype(np.int8),
            "rating": generator.integers(1, 6, size).astype(np.float32),
        }
    ).write_parquet(folder / "events.parquet")
    titles = pl.format("Product number {}", item_ids)
    pl.DataFrame({"item_id": item_ids}).with_columns(title=titles).write_parquet(folder / "items.parquet")
    pl.DataFrame(
        {"user_id": np.arange(sizes.num_users), "age": generator.integers(18, 80, sizes.num_users)}
    ).write_parquet(folder / "users.parquet")


def measure(sizes: Sizes) -> dict[str, Any]:
    """Prepare a log of these sizes with 5-core and leave-one-out; seconds and peak resident memory of that process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_log(folder, sizes)
        command = [sys.executable, "-m", "onerec.data", "prepare", "--source", "parquet", "--from", name]
        command += ["--out", str(folder / "data"), "--set", "data.policies.duplicates=drop"]
        command += ["--set", "data.core={user_events: 5, item_events: 5}"]
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=sys.stderr)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        if status:
            raise RuntimeError(f"preparing failed with status {os.waitstatus_to_exitcode(status)}")
        input_bytes = (folder / "events.parquet").stat().st_size
    return {
        "events": sizes.num_events,
        "users": sizes.num_users,
        "items": sizes.num_items,
        "input_mib": round(input_bytes / 2**20, 1),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),  # beside seconds: how busy the machine was
        "events_per_s": round(sizes.num_events / seconds),
        "peak_gib": round(usage.ru_maxrss * 1024 / _GIBIBYTE, 3),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preparation", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="half a million events, a few seconds")
    arguments = parser.parse_args(argv)
    publish(measure(QUICK if arguments.quick else FULL), arguments.json)


if __name__ == "__main__":
    main()
