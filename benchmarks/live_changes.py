"""The catalogue and the model change under load: `python -m benchmarks.live_changes --bundle runs/demo/bundle
[--quick] [--json PATH]`.

The real server is asked in an open loop while items join (PUT), are asked for by a filter, and leave again (DELETE),
and while bundles are swapped. What must be nought:

- `failed`: requests, changes and swaps answered by anything but 200; `refused` are those with 503. The server has a
  minute for each, so that a machine busy with other work does not make it refuse any;
- `removed_returned`: answers to requests sent after a removal was acknowledged which hold the removed item;
- `new_missing`: items that a filter for them alone did not return after they were acknowledged.

Then the server is killed (SIGKILL) at random moments while events and changes are written, and started again:

- `lost_events`, `lost_changes`: acknowledged, and not there any more.
"""

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from benchmarks.endpoint import Answer, Client, Endpoint, http, keep_busy, offer, serving
from benchmarks.figures import publish
from benchmarks.serving import percentiles_ms
from onerec.bundle import KIND, Bundle
from tokenizer.artifacts import read_manifest, write_manifest

_FIRST_NEW_ID = 10**9
# What is in question is whether anything fails, not how long it takes: a machine that others use, too, must not make
# the server refuse what it could have answered. The milliseconds are among the figures.
_LIMITS = ("deadline_ms=60000",)
_MOST_A_KILL = 80  # removals, and events
_NEVER_S = float("inf")


@dataclass(frozen=True)
class Plan:
    """How much happens."""

    num_changes: int
    num_swaps: int
    num_kills: int
    load: float  # share of what the endpoint bears, that is asked of it meanwhile


FULL = Plan(1000, 20, 20, 0.3)
QUICK = Plan(20, 2, 1, 0.2)
_CALIBRATION_S = 4.0


@dataclass
class Watcher:
    """Looks at every answer for items that were gone when it was asked for."""

    removed_s: dict[str, float] = field(default_factory=dict)  # item -> when its removal was acknowledged
    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    refused: int = 0
    removed_returned: int = 0

    def see(self, answer: Answer) -> None:
        """Count an answer to a request that was due, and hence sent, at its time or later."""
        if answer.status != 200:
            self.failed += 1
            self.refused += answer.status == 503
            return
        self.seconds.append(answer.seconds)
        items = [str(item["id"]) for item in json.loads(answer.body)["items"]]
        self.removed_returned += any(self.removed_s.get(item, _NEVER_S) < answer.due_s for item in items)


class Changer:
    """Puts new items in and takes items out, one after the other."""

    def __init__(self, endpoint: Endpoint, items: pl.DataFrame, watcher: Watcher) -> None:
        self._client, self._watcher = Client(endpoint), watcher
        text_columns = [name for name, kind in items.schema.items() if name != "item_id" and kind == pl.String]
        self._fields = items.select(text_columns).to_dicts()
        self._numbers = items.schema["item_id"].is_integer()
        self.num_new_missing = self.num_failed = self.num_refused = 0
        self.seconds: list[float] = []

    async def put(self, number: int) -> None:
        """A new item with the text of some other, which a filter for it must then return."""
        item_id = str(_FIRST_NEW_ID + number)
        await self._change("PUT", item_id, json.dumps({"fields": self._fields[number % len(self._fields)]}).encode())
        body = {"history": [], "k": 1, "filter": {"items": [int(item_id) if self._numbers else item_id]}}
        status, answer = await self._client.send(http("POST", "/v1/recommend", json.dumps(body).encode()))
        self._count(status)
        self.num_new_missing += status == 200 and [item["id"] for item in json.loads(answer)["items"]] != [
            body["filter"]["items"][0]  # type: ignore[index]
        ]

    async def remove(self, item_id: str) -> None:
        """Take an item out, and note when that was acknowledged."""
        await self._change("DELETE", item_id, b"")
        self._watcher.removed_s[item_id] = time.monotonic()

    async def swap(self, folder: Path) -> None:
        """Serve another bundle."""
        body = json.dumps({"folder": str(folder)}).encode()
        status, _ = await self._client.send(http("POST", "/v1/admin/bundle", body))
        self._count(status)

    async def _change(self, method: str, item_id: str, body: bytes) -> None:
        begin_s = time.monotonic()
        status, _ = await self._client.send(http(method, f"/v1/items/{item_id}", body))
        self._count(status)
        self.seconds.append(time.monotonic() - begin_s)

    def _count(self, status: int) -> None:
        self.num_failed += status != 200
        self.num_refused += status == 503


def other_bundle(folder: Path, copy: Path) -> Path:
    """The same bundle under another hash."""
    shutil.copytree(folder, copy)
    manifest = read_manifest(copy, KIND)
    (copy / "README.md").write_text("another bundle", encoding="utf-8")
    write_manifest(copy, KIND, manifest.inputs, manifest.config_hash, {**manifest.details, "run": "other"})
    return copy


async def change_all(changer: Changer, plan: Plan, bundles: tuple[Path, Path], own: Sequence[str]) -> None:
    """Additions and removals in turn, of new items and of the bundle's own, with the swaps between them."""
    every = max(1, plan.num_changes // plan.num_swaps)
    for number in tqdm(range(plan.num_changes), desc="changes", unit="change"):
        if number % 2 == 0:
            await changer.put(number)
        elif number % 4 == 1:
            await changer.remove(str(_FIRST_NEW_ID + number - 1))
        else:
            await changer.remove(own[number // 4])
        if number % every == every - 1:
            await changer.swap(bundles[(number // every + 1) % 2])


async def live(endpoint: Endpoint, folders: tuple[Path, Path], plan: Plan) -> dict[str, Any]:
    """All changes under load; the load ends with them."""
    bundle = Bundle.load(folders[0])
    ids = bundle.items["item_id"].to_list()
    random = np.random.default_rng(0)
    # The first items by index are asked about and never taken out; those taken out come from the rest, well mixed.
    histories = [[ids[item] for item in random.integers(0, len(ids) // 2, 20)] for _ in range(256)]
    gone = random.permutation(len(ids) // 2) + len(ids) // 2
    watcher = Watcher()
    changer = Changer(endpoint, bundle.items, watcher)

    def request(number: int) -> bytes:
        return http("POST", "/v1/recommend", json.dumps({"history": histories[number % 256], "k": 50}).encode())

    answered, seconds = await keep_busy(Client(endpoint), request, 8, _CALIBRATION_S)
    rate_per_s = plan.load * answered / seconds

    async def load() -> None:
        for part in range(2**31):
            await offer(Client(endpoint), request, rate_per_s, 10.0, watcher.see, seed=part, catch_up=False)

    task = asyncio.create_task(load())
    begin_s = time.monotonic()
    await change_all(changer, plan, folders, [str(ids[item]) for item in gone])
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    p50_ms, p99_ms = percentiles_ms(watcher.seconds)
    change_p50_ms, change_p99_ms = percentiles_ms(changer.seconds)
    return {
        "changes": plan.num_changes,
        "swaps": plan.num_swaps,
        "requests": len(watcher.seconds),
        "requests_per_s": rate_per_s,
        "failed": watcher.failed + changer.num_failed,
        "refused": watcher.refused + changer.num_refused,
        "removed_returned": watcher.removed_returned,
        "new_missing": changer.num_new_missing,
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "change_p50_ms": change_p50_ms,
        "change_p99_ms": change_p99_ms,
        "seconds": time.monotonic() - begin_s,
    }


async def write_until_killed(endpoint: Endpoint, item: Any, gone: Sequence[str], seconds: float, user: str) -> int:
    """Write events of a user, and removals, until the server is killed; how many of each were acknowledged."""
    client, acknowledged = Client(endpoint), 0
    event = json.dumps({"events": [{"user_id": user, "item_id": item}]}).encode()
    asyncio.get_running_loop().call_later(seconds, endpoint.kill)
    for item_id in gone:
        for request in (http("DELETE", f"/v1/items/{item_id}"), http("POST", "/v1/events", event)):
            status, _ = await client.send(request)
            if status != 200:
                return acknowledged
        acknowledged += 1
    return acknowledged


async def count_stored(endpoint: Endpoint, user: str, gone: Sequence[str]) -> tuple[int, int]:
    """Events of a user that are stored, at most 200, and how many of the items are out."""
    client = Client(endpoint)
    _, body = await client.send(http("GET", f"/v1/users/{user}/history?limit=200"))
    items = [json.loads((await client.send(http("GET", f"/v1/items/{item_id}")))[1]) for item_id in gone]
    return len(json.loads(body)["items"]), sum(not item["available"] for item in items)


def kill(folder: Path, state: Path, num_kills: int) -> dict[str, int]:
    """Kill the server while it writes, and count after each start what it has lost."""
    ids = [str(item) for item in Bundle.load(folder).items["item_id"].to_list()]
    random = np.random.default_rng(1)
    lost_events = lost_changes = total = 0
    for number in tqdm(range(num_kills), desc="kills", unit="kill"):
        user, first = f"user-{number}", 1 + total
        with serving(folder, state) as endpoint:
            seconds = random.uniform(0.1, 3.0)
            done = asyncio.run(write_until_killed(endpoint, ids[0], ids[first : first + _MOST_A_KILL], seconds, user))
        with serving(folder, state) as endpoint:
            events, changes = asyncio.run(count_stored(endpoint, user, ids[first : first + done]))
        lost_events, lost_changes = lost_events + max(0, done - events), lost_changes + done - changes
        total += done
    return {"kills": num_kills, "acknowledged": 2 * total, "lost_events": lost_events, "lost_changes": lost_changes}


def measure(folder: Path, plan: Plan) -> dict[str, Any]:
    """All figures of one bundle."""
    with tempfile.TemporaryDirectory() as work:
        folders = (folder.resolve(), other_bundle(folder, Path(work) / "other"))
        with serving(folder, Path(work) / "live.sqlite", _LIMITS) as endpoint:
            figures = asyncio.run(live(endpoint, folders, plan))
            figures["memory_mib"] = endpoint.resident_mib
        return {**figures, **kill(folder, Path(work) / "killed.sqlite", plan.num_kills)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live_changes", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of a bundle, such as runs/demo/bundle")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK.num_changes} changes, {QUICK.num_swaps} swaps")
    parser.add_argument("--kills", type=int, help=f"default: {FULL.num_kills}, with --quick {QUICK.num_kills}")
    arguments = parser.parse_args(argv)
    plan = QUICK if arguments.quick else FULL
    if arguments.kills is not None:
        plan = replace(plan, num_kills=arguments.kills)
    publish(measure(arguments.bundle, plan), arguments.json)


if __name__ == "__main__":
    main()
