"""Real server processes, killed: what was acknowledged is there again."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import polars as pl

import serve
from tests.processes import started

ADMIN = "admin-key-of-the-server"
AUTHORIZED = {"authorization": f"Bearer {ADMIN}"}


def run_server(arguments: list[str]) -> int:
    os.environ["ONEREC_ADMIN_KEY"] = ADMIN
    return serve.main(arguments)


@contextmanager
def serving(bundle: Path, state: Path) -> Iterator[httpx.Client]:
    """A server that is killed, not stopped, in the end."""
    arguments, log = ["--bundle", str(bundle), "--port", "0", "--histories", str(state)], state.with_suffix(".log")
    log.write_text("")
    with started(run_server, arguments, log=log) as process:
        while process.is_alive() and not (address := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            time.sleep(0.02)
        assert address is not None, log.read_text()
        with httpx.Client(base_url=address[0], timeout=120) as client:
            yield client
    assert process.exitcode == -signal.SIGKILL


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
