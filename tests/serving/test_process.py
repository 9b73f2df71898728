"""Real server processes, killed: what was acknowledged is there again."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import polars as pl

ROOT = Path(__file__).resolve().parent.parent.parent
ADMIN = "admin-key-of-the-server"
AUTHORIZED = {"authorization": f"Bearer {ADMIN}"}


@contextmanager
def serving(bundle: Path, state: Path) -> Iterator[httpx.Client]:
    """A server that is killed, not stopped, in the end."""
    arguments = ["--bundle", str(bundle), "--port", "0", "--histories", str(state)]
    environment = {**os.environ, "ONEREC_ADMIN_KEY": ADMIN}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "serve.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert address is not None
        with httpx.Client(base_url=address[0], timeout=120) as client:
            yield client
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_acknowledged_changes_and_events_are_there_after_a_kill(
    make_live_bundle: Callable[..., Path], live_items: pl.DataFrame, tmp_path: Path
) -> None:
    bundle, state, added = make_live_bundle(), tmp_path / "state.sqlite", []
    with serving(bundle, state) as client:
        for number in range(5):
            vector = live_items["vector"][number].to_list()
            answer = client.put(f"/v1/items/{500 + number}", json={"vector": vector}, headers=AUTHORIZED)
            added.append(answer.json()["semantic_id"])
            assert client.delete(f"/v1/items/{100 + number}", headers=AUTHORIZED).status_code == 200
        body = {"events": [{"user_id": "ann", "item_id": 503}, {"user_id": "ann", "item_id": 104}]}
        assert client.post("/v1/events", json=body).json() == {"stored": 2}
    with serving(bundle, state) as client:
        assert [client.get(f"/v1/items/{500 + number}").json()["semantic_id"] for number in range(5)] == added
        history = client.get("/v1/users/ann/history").json()["items"]
        assert [item["id"] for item in history] == [503, 104]
        found = client.post("/v1/recommend", json={"user_id": "ann", "k": 45}).json()
        assert {item["id"] for item in found["items"]} == {*range(105, 140), 500, 501, 502, 504}
        assert found["history_items_read"] == 2
