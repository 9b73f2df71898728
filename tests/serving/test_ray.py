"""A real Ray on this machine: two replicas behind its proxy, replaced under load; a batch by two workers."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from onerec.bundle import Bundle
from onerec.serving.batch import BatchSettings, run_batch
from tests.serving.test_batch import write_users
from tests.serving.test_live import ADMIN, AUTHORIZED

pytest.importorskip("ray", reason="no ray in this environment")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # two minutes where nothing else runs

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--set", "cpus=0.1", "--set", "surge_percent=50"]
# A Ray that is started here asks for its user's token, which is not read for an address by itself. On a busy machine
# its workers, which stand back behind all other processes, would not start, and its proxy take longer than Ray waits.
ENVIRONMENT = {**os.environ, "ONEREC_ADMIN_KEY": ADMIN, "RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}
ENVIRONMENT |= {f"RAY_SERVE_PROXY_{check}_CHECK_TIMEOUT_S": "120" for check in ("READY", "HEALTH")}


@contextmanager
def replicas(bundle: Path, redis: str) -> Iterator[tuple[str, list[str]]]:
    """Two replicas in a Ray of their own, stopped in the end: their address, and the command that replaces them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "serve.py"), "ray", "--port", str(port), "--histories", redis, *SMALL]
    process = subprocess.Popen([*command, "--bundle", str(bundle)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdout is not None
    try:
        started = next((line for line in process.stdout if line.startswith("Serving")), "")
        cluster = re.search(r"--cluster (\S+)", started)
        assert cluster is not None
        yield f"http://127.0.0.1:{port}", [*command, "--cluster", cluster[1]]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Load:
    """Asks on and on until it is told to stop."""

    def __init__(self, address: str, gone: set[int]) -> None:
        self.answers: list[tuple[int, str]] = []
        self.wrong: list[Any] = []
        self._address, self._gone, self._stopped = address, gone, threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._address, timeout=60) as client:
            while not self._stopped.is_set():
                gone = set(self._gone)
                response = client.post("/v1/recommend", json={"history": [103], "k": 45, "beams": 45})
                answer = response.json()
                self.answers.append((response.status_code, answer.get("bundle", "")))
                self.wrong += [item["id"] for item in answer.get("items", ()) if item["id"] in gone]
                self._stopped.wait(0.05)


def test_replicas_share_what_changes_and_are_replaced_without_a_failure(
    make_live_bundle: Callable[..., Path], live_bundle: Path, live_items: Any, redis_server: Any, tmp_path: Path
) -> None:
    other, vector, gone = make_live_bundle(seed=1), list(live_items["vector"][7]), set[int]()
    hashes = [Bundle.load(folder).manifest.content_hash for folder in (live_bundle, other)]
    with replicas(live_bundle, redis_server.address) as (address, command):
        with httpx.Client(base_url=address, timeout=60) as client, Load(address, gone) as load:
            for number in range(10):  # the proxy deals requests out to both replicas
                removed = client.delete(f"/v1/items/{100 + number}", headers=AUTHORIZED)
                assert removed.status_code == 200, removed.text
                gone.add(100 + number)
                put = client.put(f"/v1/items/{500 + number}", json={"vector": vector}, headers=AUTHORIZED)
                assert put.status_code == 200, put.text
                event = {"user_id": "ann", "item_id": 500 + number}
                assert client.post("/v1/events", json={"events": [event]}).status_code == 200
                assert len(client.get("/v1/users/ann/history").json()["items"]) == number + 1
            refused = client.post("/v1/admin/bundle", json={"folder": str(other)}, headers=AUTHORIZED)
            assert "found one replica of several" in refused.json()["reason"]
            subprocess.run([*command, "--bundle", str(other)], check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
            assert {client.get("/readyz").json()["bundle"] for _ in range(20)} == {hashes[1]}
            assert client.get("/v1/items/505").json()["available"]
        damaged = subprocess.run([*command, "--bundle", str(tmp_path)], capture_output=True, text=True, check=False)
        assert "found no manifest.json" in damaged.stderr
        assert httpx.get(f"{address}/readyz").json()["bundle"] == hashes[1]
    assert {status for status, _ in load.answers} == {200}
    assert {bundle for _, bundle in load.answers} == set(hashes)
    assert load.wrong == []
    assert len(load.answers) > 20


def test_workers_give_what_one_process_gives(small_bundle: Path, tmp_path: Path) -> None:
    users, alone, spread = (tmp_path / f"{name}.parquet" for name in ("users", "alone", "spread"))
    write_users(users, 50)
    run_batch(small_bundle, users, alone, None, BatchSettings(k=3, users_per_part=8))
    command = [sys.executable, str(ROOT / "serve.py"), "batch", "--ray", "2", "--set", "k=3", "--set"]
    command += ["users_per_part=8", "--bundle", str(small_bundle), "--users", str(users), "--out", str(spread)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{spread}: 50 users answered" in done.stdout
    assert pl.read_parquet(spread).equals(pl.read_parquet(alone))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.parquet", "spread.parquet", "users.parquet"]
