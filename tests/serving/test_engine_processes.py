"""An endpoint of two processes that share the model out, against the same endpoint of one."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

import serve
from onerec.bundle import Bundle
from onerec.serving.access import Keys
from onerec.serving.app import create_app
from onerec.serving.changes import SqliteChanges
from onerec.serving.engine import Engine
from onerec.serving.histories import SqliteHistories
from onerec.serving.limits import Limits
from tests.processes import by_torchrun

ADMIN = "admin-key-of-the-server"
AUTHORIZED = {"authorization": f"Bearer {ADMIN}"}
Client = httpx.Client | TestClient


def serve_together(arguments: list[str], pids: Path) -> None:
    os.environ["ONEREC_ADMIN_KEY"] = ADMIN
    (pids / os.environ["RANK"]).write_text(str(os.getpid()))
    assert serve.main(arguments) == 0


def talk(client: Client, vector: list[float]) -> list[tuple[int, Any]]:
    """What an endpoint says, call by call; both are told the same."""

    def ask(**request: object) -> tuple[int, Any]:
        answer = client.post("/v1/recommend", json={"history": [103, 104, 111], "k": 6, **request})
        return answer.status_code, answer.json()

    answers = [ask(), ask(history=[]), ask(exclude=[105, 120], beams=12), ask(explain=True)]
    filtered = {"columns": {"genre": ["noir", "horror"]}}
    answers += [ask(filter=filtered), ask(filter={"items": [130, 131]}), ask(filter=filtered, exclude=[102])]
    best = answers[0][1]["items"][0]["id"]
    answers.append((client.delete(f"/v1/items/{best}", headers=AUTHORIZED).status_code, best))
    answers += [ask(), ask(filter=filtered)]
    answers.append((client.put(f"/v1/items/{best}", json={}, headers=AUTHORIZED).status_code, best))
    answers.append(ask())
    for call, path, body in (("PUT", "items/500", {"vector": vector}), ("POST", "admin/bundle", {"folder": "other"})):
        refused = client.request(call, f"/v1/{path}", json=body, headers=AUTHORIZED)
        answers.append((refused.status_code, refused.text))
    return [*answers, ask(exact=True), ask()]


@pytest.fixture(scope="module")
def both(live_bundle: Path, live_items: Any, tmp_path_factory: pytest.TempPathFactory) -> list[list[tuple[int, Any]]]:
    """What two processes say, then what one says."""
    pytest.importorskip("deepspeed", reason="no deepspeed package in this environment")
    folder, vector = tmp_path_factory.mktemp("together"), live_items["vector"][0].to_list()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["--bundle", str(live_bundle), "--port", str(port), "--histories", str(folder / "state.sqlite")]
    with ThreadPoolExecutor(1) as background:
        ended = background.submit(by_torchrun, 2, serve_together, arguments, folder)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            while not ended.done() and not _listens(port):
                time.sleep(0.1)
            together = talk(client, vector)
        os.kill(int((folder / "0").read_text()), signal.SIGINT)
        ended.result(timeout=120)  # both ended by themselves, without an error
    app = create_app(
        Engine(Bundle.load(live_bundle), Limits()),
        SqliteHistories(),
        Keys(admin=(ADMIN,)),
        SqliteChanges(folder / "alone.sqlite"),
    )
    with TestClient(app) as client:
        return [together, talk(client, vector)]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_two_processes_answer_as_one_while_the_catalogue_changes(both: list[list[tuple[int, Any]]]) -> None:
    together, alone = (answers[:12] for answers in both)
    assert [status for status, _ in together + alone] == [200] * 24
    for (_, found), (_, expected) in zip(together, alone, strict=True):
        (words, scores), (expected_words, expected_scores) = said(found), said(expected)
        assert words == expected_words
        assert scores == pytest.approx(expected_scores, rel=1e-5)
    assert together[4][1]["items"] != together[0][1]["items"]
    assert together[8][1]["items"][0]["id"] != together[7][1] == together[11][1]["items"][0]["id"]


def test_what_takes_a_whole_model_is_refused_and_nothing_stops(both: list[list[tuple[int, Any]]]) -> None:
    (new, swap, exact, after), plain = both[0][12:], both[0][0]
    assert [status for status, _ in (new, swap, exact)] == [400, 400, 400]
    assert "takes in no new items" in new[1]
    assert "Start them anew with another" in swap[1]
    assert "expected a whole one" in str(exact[1])
    assert after == plain


def said(answer: Any) -> tuple[list[Any], list[float]]:
    """All that an answer says: ids, codes and words, and scores."""
    parts = list(flat(answer))
    return [part for part in parts if not isinstance(part, float)], [part for part in parts if isinstance(part, float)]


def flat(answer: Any) -> Iterator[Any]:
    """The leaves of an answer."""
    if isinstance(answer, dict | list):
        for part in answer.values() if isinstance(answer, dict) else answer:
            yield from flat(part)
    else:
        yield answer
