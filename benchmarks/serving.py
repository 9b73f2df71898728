"""The endpoint under load: `python -m benchmarks.serving --bundle runs/demo/bundle [--quick] [--pin] [--json PATH]`.

The real server runs as a process of its own on this machine and is asked by another, this one, over HTTP. With `--pin`
the load has the last core for itself, and the server and the decoder the others.

- `forms`, also printed as a table: requests a second of the endpoint, kept busy, and of the decoder alone (encode and
  search of the same requests in batches as large as the endpoint's were), in turns; `ratio` is the median turn's first
  over second. `single`: one request a call, many calls at once, `batch` what the endpoint decoded together on average.
  `batch`: a call of `batch` requests after the other. `cpu_ratio` compares processor seconds a request, the decoder's
  over the server's, which others who use the machine disturb less. `throughput_ratio_vs_decoder` and
  `batch_ratio_vs_decoder` are the worst of each form.
- `latency`: milliseconds by width, items in the history and load, the load a share of that throughput, in an open loop.
- `overload`: twice the throughput, for `--overload-seconds`. `accepted`, `refused` (503) and `failed` (anything else)
  requests, `late` ones among the accepted (beyond the deadline), the time in which the refused learnt of it, and the
  growth of the server's memory after the first tenth.

Both tell how late the load left after it was due (`lag_p99_ms`); a figure whose load lagged is not `valid`.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.endpoint import (
    Answer,
    Client,
    Endpoint,
    http,
    keep_busy,
    leave_core,
    offer,
    on_cores,
    serving,
)
from benchmarks.figures import publish
from kernels.memory import keep_freed_memory
from onerec.bundle import Bundle
from onerec.decoding.recommender import OneRecRecommender
from onerec.serving.limits import Limits
from onerec.serving.server import spare_collector

LIST_LENGTH = 10
_NUM_REQUESTS = 256  # different ones, sent over and over
_MOST_LAG_MS = 5.0  # of 99 % of an open loop's requests; beyond it its figures tell of the load, not of the server
_COLUMNS = ("form", "beams", "batch", "requests_per_s", "decoder_requests_per_s", "ratio", "cpu_ratio")

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    widths: tuple[int, ...]
    history_items: tuple[int, ...]
    loads: tuple[float, ...]
    seconds: float  # of each measurement
    max_requests: int  # decoded together
    batch_widths: tuple[int, ...] = (10, 50)
    batches: tuple[int, ...] = (8, 32)  # requests of a call of the batch form
    turns: int = 5  # of the endpoint and of the decoder, in each measurement of throughput


FULL = Plan((10, 50, 128, 512), (5, 50), (0.3, 0.6, 0.9), 15.0, 32)
QUICK = Plan((10, 50), (20,), (0.5,), 3.0, 16, turns=2)


@dataclass(frozen=True)
class Form:
    """How the endpoint is kept busy: by so many calls at once, of one request or a batch of several."""

    name: Literal["single", "batch"]
    width: int
    num_calls: int
    num_requests: int  # of a call


@dataclass
class Tally:
    """Answers to an open loop, counted."""

    accepted_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    failed: int = 0

    def see(self, answer: Answer) -> None:
        """Count one."""
        if answer.status == 200:
            self.accepted_s.append(answer.seconds)
        elif answer.status == 503:
            self.refused_s.append(answer.seconds)
        else:
            self.failed += 1

    def figures(self) -> dict[str, float]:
        """Milliseconds of what was accepted, the numbers, and whether the load was in time."""
        p50_ms, p99_ms = percentiles_ms(self.accepted_s)
        lag_p99_ms = percentiles_ms(self.lags_s)[1]
        counts = {"accepted": len(self.accepted_s), "refused": len(self.refused_s), "failed": self.failed}
        valid = lag_p99_ms <= _MOST_LAG_MS
        return {"p50_ms": p50_ms, "p99_ms": p99_ms, **counts, "lag_p99_ms": lag_p99_ms, "valid": valid}


class Requests:
    """Random histories of the bundle's items, as the endpoint reads them and as the decoder does."""

    def __init__(self, bundle: Bundle, width: int, num_items: int) -> None:
        random = np.random.default_rng(num_items)
        ids = bundle.items["item_id"].to_list()
        self.width = width
        self.histories = [random.integers(0, len(ids), num_items) for _ in range(_NUM_REQUESTS)]
        self._bodies = [
            {"history": [ids[item] for item in history], "k": LIST_LENGTH, "beams": width} for history in self.histories
        ]
        self._requests = [http("POST", "/v1/recommend", json.dumps(body).encode()) for body in self._bodies]

    def __call__(self, number: int) -> bytes:
        """The request of a number, as it is written to a connection."""
        return self._requests[number % _NUM_REQUESTS]

    def calls(self, num_requests: int) -> Callable[[int], bytes]:
        """Calls of the batch form by number, likewise."""
        starts = range(0, _NUM_REQUESTS - num_requests + 1, num_requests)
        bodies = [{"requests": self._bodies[start : start + num_requests]} for start in starts]
        calls = [http("POST", "/v1/recommend/batch", json.dumps(body).encode()) for body in bodies]
        return lambda number: calls[number % len(calls)]


def percentiles_ms(seconds: Sequence[float]) -> tuple[float, float]:
    """The 50th and the 99th, in milliseconds; NaN of none."""
    if not seconds:
        return float("nan"), float("nan")
    p50, p99 = np.percentile(np.array(seconds), [50, 99])
    return 1e3 * float(p50), 1e3 * float(p99)


def batches_so_far(endpoint: Endpoint) -> tuple[float, float]:
    """Batches that the endpoint has decoded, and requests in them."""
    _, page = asyncio.run(Client(endpoint).send(http("GET", "/metrics")))
    count, total = (re.search(rf"onerec_batch_requests_{name} (\S+)".encode(), page) for name in ("count", "sum"))
    assert count is not None
    assert total is not None
    return float(count[1]), float(total[1])


@dataclass(frozen=True)
class Bench:
    """A server to ask, and the decoder that it stands in front of.

    Args:
        load_cores: where the load runs; empty for wherever there is room.
    """

    endpoint: Endpoint
    bundle: Bundle
    plan: Plan
    load_cores: AbstractSet[int]

    def load(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run what loads the endpoint."""
        with on_cores(self.load_cores):
            return asyncio.run(work)

    def ask(self, form: Form, call: Callable[[int], bytes], seconds: float) -> tuple[float, float, float]:
        """One turn of the endpoint: requests a second, processor seconds a request, requests decoded together."""
        begin, begin_cpu_s = batches_so_far(self.endpoint), self.endpoint.cpu_s
        answered, took_s = self.load(keep_busy(Client(self.endpoint), call, form.num_calls, seconds))
        cpu_s, end = self.endpoint.cpu_s - begin_cpu_s, batches_so_far(self.endpoint)
        num_requests = answered * form.num_requests
        return num_requests / took_s, cpu_s / num_requests, (end[1] - begin[1]) / (end[0] - begin[0])


def measure_decoder(
    recommender: OneRecRecommender, requests: Requests, batch: int, seconds: float
) -> tuple[float, float]:
    """Requests a second of the decoder alone, and its processor seconds a request."""
    answered, begin_s, begin_cpu_s = 0, time.monotonic(), time.process_time()
    while time.monotonic() - begin_s < seconds:
        rows = [requests.histories[(answered + row) % _NUM_REQUESTS] for row in range(batch)]
        recommender.search(recommender.encode(rows), LIST_LENGTH, rows, requests.width)
        answered += batch
    return answered / (time.monotonic() - begin_s), (time.process_time() - begin_cpu_s) / answered


def forms(plan: Plan) -> list[Form]:
    """Single requests of each width, as many at once as fill two batches: one waits behind the other; and batches."""
    most = {width: max(1, min(plan.max_requests, Limits().max_batch_rows // width)) for width in plan.widths}
    singles = [Form("single", width, 2 * most[width], 1) for width in plan.widths]
    return singles + [Form("batch", width, 1, batch) for width in plan.batch_widths for batch in plan.batches]


def measure_throughput(bench: Bench, form: Form) -> dict[str, Any]:
    """The endpoint, kept busy, against the decoder on batches of the same size."""
    requests = Requests(bench.bundle, form.width, bench.plan.history_items[-1])
    call = requests if form.name == "single" else requests.calls(form.num_requests)
    recommender, seconds = bench.bundle.recommender(form.width), bench.plan.seconds / bench.plan.turns
    bench.ask(form, call, bench.plan.seconds / 3)
    measure_decoder(recommender, requests, form.num_requests, seconds / 3)
    turns = []
    for _ in range(bench.plan.turns):
        per_s, cpu_s, batch = bench.ask(form, call, seconds)
        decoder_per_s, decoder_cpu_s = measure_decoder(recommender, requests, round(batch), seconds)
        turns.append((per_s, decoder_per_s, per_s / decoder_per_s, decoder_cpu_s / cpu_s, 1e3 * cpu_s, batch))
    per_s, decoder_per_s, ratio, cpu_ratio, cpu_ms, batch = map(statistics.median, zip(*turns, strict=True))
    return {
        "form": form.name,
        "beams": form.width,
        "batch": batch,
        "requests_per_s": per_s,
        "decoder_requests_per_s": decoder_per_s,
        "ratio": ratio,
        "cpu_ratio": cpu_ratio,
        "server_cpu_ms": cpu_ms,
    }


def measure_latency(bench: Bench, per_s: dict[int, float]) -> list[dict[str, float]]:
    """One row for each width, history and load."""
    plan, rows = bench.plan, []
    cells = [(width, items, load) for width in plan.widths for items in plan.history_items for load in plan.loads]
    for width, items, load in tqdm(cells, desc="latency", unit="cell"):
        tally, rate_per_s = Tally(), load * per_s[width]
        requests = Requests(bench.bundle, width, items)
        tally.lags_s = bench.load(offer(Client(bench.endpoint), requests, rate_per_s, plan.seconds, tally.see))
        rows.append({"beams": width, "history": items, "load": load, "per_s": rate_per_s, **tally.figures()})
    return rows


def measure_overload(bench: Bench, width: int, rate_per_s: float, seconds: float) -> dict[str, float]:
    """An open loop at more than the endpoint can bear."""
    tally, memory_mib, endpoint = Tally(), [], bench.endpoint
    requests = Requests(bench.bundle, width, bench.plan.history_items[-1])

    async def load() -> None:
        client = Client(endpoint)
        for part in tqdm(range(10), desc="overload", unit="tenth"):
            tally.lags_s += await offer(client, requests, rate_per_s, seconds / 10, tally.see, seed=part)
            memory_mib.append(endpoint.resident_mib)

    bench.load(load())
    deadline_s = Limits().deadline_ms / 1e3
    refused_p50_ms, refused_p99_ms = percentiles_ms(tally.refused_s)
    return {
        **tally.figures(),
        "beams": width,
        "offered_per_s": rate_per_s,
        "late": sum(accepted_s > deadline_s for accepted_s in tally.accepted_s),
        "latest_ms": 1e3 * max(tally.accepted_s, default=0.0),
        "refused_p50_ms": refused_p50_ms,
        "refused_p99_ms": refused_p99_ms,
        "memory_mib": memory_mib[-1],
        "memory_growth": memory_mib[-1] / memory_mib[0] - 1,
        "crashed": float(endpoint.process.poll() is not None),
    }


def measure(
    folder: Path,
    plan: Plan,
    overload_s: float,
    load_cores: AbstractSet[int] = frozenset(),
    parts: Sequence[str] = ("latency", "overload"),
) -> dict[str, Any]:
    """The throughput of one bundle, and what of `parts` is asked for."""
    bundle = Bundle.load(folder)
    spare_collector()  # the decoder alone and the load have no pauses that the server is spared
    with tempfile.TemporaryDirectory() as state, serving(folder, Path(state) / "state.sqlite") as endpoint:
        bench = Bench(endpoint, bundle, plan, load_cores)
        rows = [measure_throughput(bench, form) for form in tqdm(forms(plan), desc="throughput", unit="form")]
        single, batch = ([row for row in rows if row["form"] == name] for name in ("single", "batch"))
        per_s = {row["beams"]: row["requests_per_s"] for row in single}
        figures: dict[str, Any] = {
            "throughput_ratio_vs_decoder": min(row["ratio"] for row in single),
            "cpu_ratio_vs_decoder": min(row["cpu_ratio"] for row in single),
            "batch_ratio_vs_decoder": min(row["ratio"] for row in batch),
            "batch_cpu_ratio_vs_decoder": min(row["cpu_ratio"] for row in batch),
            "forms": rows,
        }
        width = plan.widths[min(1, len(plan.widths) - 1)]
        if "latency" in parts:
            latency = measure_latency(bench, per_s)
            usual = next(row for row in latency if row["beams"] == width)
            figures |= {"p50_ms": usual["p50_ms"], "p99_ms": usual["p99_ms"], "latency": latency}
        if "overload" in parts:
            overload = measure_overload(bench, width, 2 * per_s[width], overload_s)
            figures |= {name: overload[name] for name in ("accepted", "refused", "failed")} | {"overload": overload}
    return {**figures, "pinned": bool(load_cores)}


def print_forms(rows: Sequence[dict[str, Any]]) -> None:
    """The table of `forms`."""
    print("  ".join(f"{name:>{max(8, len(name))}}" for name in _COLUMNS))
    for row in rows:
        cells = (row[name] if name == "form" else f"{row[name]:.4g}" for name in _COLUMNS)
        print("  ".join(f"{cell:>{max(8, len(name))}}" for name, cell in zip(_COLUMNS, cells, strict=True)))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of a bundle, such as runs/demo/bundle")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="fewer widths and loads, seconds each")
    parser.add_argument("--overload-seconds", type=float, help="default: 600, with --quick 6")
    parser.add_argument("--pin", action="store_true", help="a core for the load alone; wants two")
    parser.add_argument(
        "--parts",
        nargs="*",
        choices=["latency", "overload"],
        default=["latency", "overload"],
        help="what is measured beside the throughput (default: both)",
    )
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    load_cores = leave_core() if arguments.pin else frozenset()
    torch.set_num_threads(min(torch.get_num_threads(), len(os.sched_getaffinity(0))))  # as the server will
    plan, overload_s = (QUICK, 6.0) if arguments.quick else (FULL, 600.0)
    overload_s = arguments.overload_seconds or overload_s
    figures = measure(arguments.bundle, plan, overload_s, load_cores, arguments.parts)
    print_forms(figures["forms"])
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
