"""A real Redis behind the endpoint: away, back, killed; what its absence costs, and what it does not."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from onerec.bundle import Bundle
from onerec.errors import ConfigError, OverloadedError, ServingError
from onerec.serving.access import Keys
from onerec.serving.app import create_app
from onerec.serving.engine import Engine
from onerec.serving.histories import StoredEvent
from onerec.serving.limits import Limits
from onerec.serving.stores import open_stores
from tests.serving.test_live import AUTHORIZED, put, reason, recommend, remove

EVENTS = {"events": [{"user_id": "ann", "item_id": 103}, {"user_id": "ann", "item_id": 117}]}
PAUSE_S = 0.6  # a little more than the time for which nobody asks a Redis that has failed


def serve(bundle: Path, address: str) -> TestClient:
    histories, changes = open_stores(address)
    keys = Keys(admin=(AUTHORIZED["authorization"].split()[1],))
    return TestClient(create_app(Engine(Bundle.load(bundle), Limits()), histories, keys, changes))


def test_a_redis_that_goes_away_and_comes_back(live_bundle: Path, live_items: Any, redis_server: Any) -> None:
    vector = list(live_items["vector"][7])
    with serve(live_bundle, redis_server.address) as client:
        assert client.post("/v1/events", json=EVENTS).status_code == 200
        assert put(client, 500, vector=vector).status_code == remove(client, 101).status_code == 200
        before = recommend(client, user_id="ann", k=5)
        redis_server.kill()
        refused = [client.post("/v1/events", json=EVENTS), client.post("/v1/recommend", json={"user_id": "ann"})]
        refused += [put(client, 501, vector=vector), client.get("/v1/users"), client.get("/readyz")]
        for response in refused:
            assert any(word in reason(response, 503) for word in ("Redis", "refused"))
            assert response.headers["retry-after"] == "1"
        time.sleep(PAUSE_S)
        assert "Connection refused" in reason(client.get("/readyz"), 503)
        assert client.get("/healthz").status_code == 200
        assert recommend(client, history=[103, 117], k=5)["items"] == before["items"]  # needs no Redis
        assert client.get("/v1/items/501").status_code == 404
        redis_server.start()
        time.sleep(PAUSE_S)
        assert client.get("/readyz").status_code == 200
        assert recommend(client, user_id="ann", k=5) == before
        assert client.post("/v1/events", json=EVENTS).status_code == 200
    with serve(live_bundle, redis_server.address) as client:  # after a start of the endpoint
        history = client.get("/v1/users/ann/history").json()["items"]
        assert [item["id"] for item in history] == [103, 117, 103, 117]
        assert client.get("/v1/items/500").json()["available"] is True
        assert client.get("/v1/items/101").json()["available"] is False


def test_events_that_redis_refuses_are_stored_none_of_them(redis_server: Any) -> None:
    histories, _ = open_stores(redis_server.address)
    redis_server.client().config_set("maxmemory", 1)
    with pytest.raises(OverloadedError, match=r"none of 2 was acknowledged .*maxmemory"):
        histories.append([StoredEvent("ann", "a", 1.0), StoredEvent("bob", "a", 1.0)])
    redis_server.client().config_set("maxmemory", 0)
    assert histories.users(5) == []


def test_a_redis_that_keeps_nothing_on_disk_is_said_to(redis_server: Any, caplog: pytest.LogCaptureFixture) -> None:
    open_stores(redis_server.address)
    assert caplog.text == ""
    redis_server.client().config_set("appendonly", "no")
    open_stores(redis_server.address)
    redis_server.client().config_set("appendonly", "yes")
    assert "what was acknowledged is lost where it is killed" in caplog.text


def test_no_redis_and_no_package_are_errors(redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServingError, match=r"cannot be kept in that Redis .*Connection refused"):
        open_stores("redis://127.0.0.1:1/0")
    with pytest.raises(ServingError, match="cannot be kept in that Redis"):
        open_stores("redis://127.0.0.1:port")
    monkeypatch.delitem(sys.modules, "onerec.serving.redis_stores")
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match=r"need the package redis.*\.\[serve\]"):
        open_stores(redis_server.address)
