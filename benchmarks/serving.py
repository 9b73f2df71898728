"""The endpoint under load: `python -m benchmarks.serving --bundle runs/demo/bundle [--quick] [--json PATH]`.

The real server runs as a process of its own on this machine and is asked by another, this one, over HTTP.

- `throughput`: for each width, requests a second of the endpoint, kept busy, and of the decoder alone (encode and
  search of the same requests in batches as large as the endpoint's were); `ratio` is the first over the second, and
  `throughput_ratio_vs_decoder` the worst of them. `cpu_ratio` compares processor seconds a request, the decoder's over
  the server's, which others who use the machine disturb less.
- `latency`: milliseconds by width, items in the history and load, the load a share of that throughput, in an open loop.
- `overload`: twice the throughput, for `--overload-seconds`. `accepted`, `refused` (503) and `failed` (anything else)
  requests, `late` ones among the accepted (beyond the deadline), the time in which the refused learnt of it, and the
  growth of the server's memory after the first tenth.
"""

import argparse
import asyncio
import json
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.endpoint import Answer, Client, Endpoint, http, keep_busy, offer, serving
from benchmarks.figures import publish
from kernels.memory import keep_freed_memory
from onerec.bundle import Bundle
from onerec.decoding.recommender import OneRecRecommender
from onerec.serving.limits import Limits

LIST_LENGTH = 10
_NUM_REQUESTS = 256  # different ones, sent over and over


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    widths: tuple[int, ...]
    history_items: tuple[int, ...]
    loads: tuple[float, ...]
    seconds: float  # of each measurement
    max_requests: int  # decoded together


FULL = Plan((10, 50, 128, 512), (5, 50), (0.3, 0.6, 0.9), 15.0, 32)
QUICK = Plan((10, 50), (20,), (0.5,), 3.0, 16)


@dataclass
class Tally:
    """Answers to an open loop, counted."""

    accepted_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
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
        """Milliseconds of what was accepted, and the numbers."""
        p50_ms, p99_ms = percentiles_ms(self.accepted_s)
        counts = {"accepted": len(self.accepted_s), "refused": len(self.refused_s), "failed": self.failed}
        return {"p50_ms": p50_ms, "p99_ms": p99_ms, **counts}


class Requests:
    """Random histories of the bundle's items, as the endpoint reads them and as the decoder does."""

    def __init__(self, bundle: Bundle, width: int, num_items: int) -> None:
        random = np.random.default_rng(num_items)
        ids = bundle.items["item_id"].to_list()
        self.width = width
        self.histories = [random.integers(0, len(ids), num_items) for _ in range(_NUM_REQUESTS)]
        bodies = [
            {"history": [ids[item] for item in history], "k": LIST_LENGTH, "beams": width} for history in self.histories
        ]
        self._requests = [http("POST", "/v1/recommend", json.dumps(body).encode()) for body in bodies]

    def __call__(self, number: int) -> bytes:
        """The request of a number, as it is written to a connection."""
        return self._requests[number % _NUM_REQUESTS]


def percentiles_ms(seconds: Sequence[float]) -> tuple[float, float]:
    """The 50th and the 99th, in milliseconds; NaN of none."""
    if not seconds:
        return float("nan"), float("nan")
    p50, p99 = np.percentile(np.array(seconds), [50, 99])
    return 1e3 * float(p50), 1e3 * float(p99)


def batches_so_far(client: Client) -> tuple[float, float]:
    """Batches that the endpoint has decoded, and requests in them."""
    _, page = asyncio.run(client.send(http("GET", "/metrics")))
    count, total = (re.search(rf"onerec_batch_requests_{name} (\S+)".encode(), page) for name in ("count", "sum"))
    assert count is not None
    assert total is not None
    return float(count[1]), float(total[1])


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


def measure_throughput(endpoint: Endpoint, bundle: Bundle, width: int, plan: Plan) -> dict[str, float]:
    """The endpoint, kept busy, against the decoder on batches of the same size."""
    requests = Requests(bundle, width, plan.history_items[-1])
    num_waiting = 2 * max(1, min(plan.max_requests, Limits().max_batch_rows // width))  # a batch waits behind a batch
    asyncio.run(keep_busy(Client(endpoint), requests, num_waiting, plan.seconds / 3))
    begin, begin_cpu_s = batches_so_far(Client(endpoint)), endpoint.cpu_s
    answered, seconds = asyncio.run(keep_busy(Client(endpoint), requests, num_waiting, plan.seconds))
    cpu_s = (endpoint.cpu_s - begin_cpu_s) / answered
    end = batches_so_far(Client(endpoint))
    mean_batch = (end[1] - begin[1]) / (end[0] - begin[0])
    recommender = bundle.recommender(width)
    measure_decoder(recommender, requests, round(mean_batch), plan.seconds / 3)
    decoder_per_s, decoder_cpu_s = measure_decoder(recommender, requests, round(mean_batch), plan.seconds)
    return {
        "requests_per_s": answered / seconds,
        "decoder_requests_per_s": decoder_per_s,
        "ratio": answered / seconds / decoder_per_s,
        "cpu_ratio": decoder_cpu_s / cpu_s,
        "server_cpu_ms": 1e3 * cpu_s,
        "mean_batch": mean_batch,
    }


def measure_latency(endpoint: Endpoint, bundle: Bundle, per_s: dict[int, float], plan: Plan) -> list[dict[str, float]]:
    """One row for each width, history and load."""
    cells = [(width, items, load) for width in plan.widths for items in plan.history_items for load in plan.loads]
    rows = []
    for width, items, load in tqdm(cells, desc="latency", unit="cell"):
        tally, rate_per_s = Tally(), load * per_s[width]
        requests = Requests(bundle, width, items)
        asyncio.run(offer(Client(endpoint), requests, rate_per_s, plan.seconds, tally.see))
        rows.append({"beams": width, "history": items, "load": load, "per_s": rate_per_s, **tally.figures()})
    return rows


def measure_overload(
    endpoint: Endpoint, bundle: Bundle, width: int, rate_per_s: float, seconds: float, history_items: int
) -> dict[str, float]:
    """An open loop at more than the endpoint can bear."""
    tally, memory_mib = Tally(), []
    requests, client = Requests(bundle, width, history_items), Client(endpoint)
    for part in tqdm(range(10), desc="overload", unit="tenth"):
        asyncio.run(offer(client, requests, rate_per_s, seconds / 10, tally.see, seed=part))
        client = Client(endpoint)  # connections belong to the loop that has just ended
        memory_mib.append(endpoint.resident_mib)
    deadline_s = Limits().deadline_ms / 1e3
    refused_p50_ms, refused_p99_ms = percentiles_ms(tally.refused_s)
    return {
        **tally.figures(),
        "beams": width,
        "offered_per_s": rate_per_s,
        "late": sum(accepted_s > deadline_s for accepted_s in tally.accepted_s),
        "refused_p50_ms": refused_p50_ms,
        "refused_p99_ms": refused_p99_ms,
        "memory_mib": memory_mib[-1],
        "memory_growth": memory_mib[-1] / memory_mib[0] - 1,
        "crashed": float(endpoint.process.poll() is not None),
    }


def measure(folder: Path, plan: Plan, overload_s: float) -> dict[str, Any]:
    """All figures of one bundle."""
    bundle = Bundle.load(folder)
    with tempfile.TemporaryDirectory() as state, serving(folder, Path(state) / "state.sqlite") as endpoint:
        throughput = {
            width: measure_throughput(endpoint, bundle, width, plan)
            for width in tqdm(plan.widths, desc="throughput", unit="width")
        }
        per_s = {width: figures["requests_per_s"] for width, figures in throughput.items()}
        latency = measure_latency(endpoint, bundle, per_s, plan)
        width = plan.widths[min(1, len(plan.widths) - 1)]
        overload = measure_overload(endpoint, bundle, width, 2 * per_s[width], overload_s, plan.history_items[-1])
    usual = next(row for row in latency if row["beams"] == width)
    return {
        "throughput_ratio_vs_decoder": min(figures["ratio"] for figures in throughput.values()),
        "cpu_ratio_vs_decoder": min(figures["cpu_ratio"] for figures in throughput.values()),
        "p50_ms": usual["p50_ms"],
        "p99_ms": usual["p99_ms"],
        **{name: overload[name] for name in ("accepted", "refused", "failed")},
        "throughput": {str(width): figures for width, figures in throughput.items()},
        "latency": latency,
        "overload": overload,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of a bundle, such as runs/demo/bundle")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="fewer widths and loads, seconds each")
    parser.add_argument("--overload-seconds", type=float, help="default: 600, with --quick 6")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    plan, overload_s = (QUICK, 6.0) if arguments.quick else (FULL, 600.0)
    publish(measure(arguments.bundle, plan, arguments.overload_seconds or overload_s), arguments.json)


if __name__ == "__main__":
    main()
