"""What operators see: request ids, the log, spans, and keys that ask too often."""

import gc
import json
import logging
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from onerec.bundle import Bundle
from onerec.serving import rates
from onerec.serving.access import Keys
from onerec.serving.app import create_app
from onerec.serving.engine import Engine
from onerec.serving.histories import SqliteHistories
from onerec.serving.limits import Limits
from onerec.serving.logs import JsonFormatter
from onerec.serving.rates import Rates, TooManyRequestsError
from onerec.serving.server import load_engine, spare_collector
from onerec.serving.traces import Traces

ANN, BOB = "key-of-ann-and-hers", "key-of-bob-and-his"
ASK: dict[str, Any] = {"history": [103], "k": 3}


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    return Bundle.load(small_bundle)


def test_an_answer_carries_the_callers_id_or_one_of_its_own(bundle: Bundle) -> None:
    with TestClient(create_app(Engine(bundle, Limits()), SqliteHistories())) as client:
        given = client.post("/v1/recommend", json=ASK, headers={"x-request-id": "a-1/b"})
        assert given.headers["x-request-id"] == "a-1/b"
        own = [client.get("/healthz", headers={"x-request-id": bad}) for bad in ("", "two words", "x" * 129)]
        ids = {response.headers["x-request-id"] for response in own}
        assert len(ids) == 3
        assert all(len(request_id) == 32 for request_id in ids)
        assert client.get("/nothing").headers["x-request-id"]


def test_the_log_has_one_object_a_request_and_the_failures_traceback(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine(bundle, Limits())

    def fail(queries: object) -> None:
        raise RuntimeError("weights hold NaN")

    monkeypatch.setattr(engine, "answer", fail)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("onerec.serving")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    monkeypatch.setattr(logger, "propagate", False)
    logger.manager._clear_cache()  # levels are remembered
    headers = {"x-request-id": "seven", "authorization": f"Bearer {ANN}"}
    with TestClient(create_app(engine, SqliteHistories(), Keys(api=(ANN,)))) as client:
        response = client.post("/v1/recommend", json=ASK, headers=headers)
        page = client.get("/metrics").text
    assert (response.status_code, response.headers["x-request-id"]) == (500, "seven")
    assert 'onerec_responses_total{route="/v1/recommend",status="500"} 1.0' in page
    written = capsys.readouterr().err
    assert ANN not in written
    failure, request, _ = [json.loads(line) for line in written.splitlines()]
    assert "RuntimeError: weights hold NaN" in failure.pop("exception")
    assert (failure["level"], failure["request_id"]) == ("error", "seven")
    assert (request["method"], request["route"], request["status"]) == ("POST", "/v1/recommend", 500)
    assert request["request_id"] == "seven"
    assert request["ms"] > 0


def test_a_trace_tells_the_stages_of_each_request_in_a_batch(bundle: Bundle) -> None:
    memory = pytest.importorskip(
        "opentelemetry.sdk.trace.export.in_memory_span_exporter", reason="no OpenTelemetry SDK in this environment"
    )
    exporter = memory.InMemorySpanExporter()
    caller = "0af7651916cd43dd8448eb211c80319c"
    app = create_app(Engine(bundle, Limits()), SqliteHistories(), traces=Traces(exporter, batch=False))
    with TestClient(app) as client:
        client.post("/v1/events", json={"events": [{"user_id": "ann", "item_id": 103}]})
        exporter.clear()
        body = {"requests": [ASK, {"user_id": "ann", "k": 3}]}
        client.post("/v1/recommend/batch", json=body, headers={"traceparent": f"00-{caller}-b7ad6b7169203331-01"})
        client.post("/v1/recommend", json={"history": ["nothing"]})
        spans = exporter.get_finished_spans()
    first, refused = [span for span in spans if span.name.startswith("POST")]
    assert [first.name, refused.name] == ["POST /v1/recommend/batch", "POST /v1/recommend"]
    assert [span.attributes["http.response.status_code"] for span in (first, refused)] == [200, 400]
    assert format(first.context.trace_id, "032x") == caller
    stages = [span for span in spans if span.parent is not None and span.parent.span_id == first.context.span_id]
    assert sorted(span.name for span in stages) == ["answer"] * 2 + ["encode"] * 2 + ["history"] + ["search"] * 2
    assert len(spans) == len(stages) + 2
    for span in stages:
        assert first.start_time <= span.start_time <= span.end_time <= first.end_time
    times = {span.name: (span.start_time, span.end_time) for span in stages}
    assert times["encode"][1] == pytest.approx(times["search"][0], abs=1e6)  # one after the other, within a millisecond
    assert times["search"][1] <= times["answer"][1]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that rates see: its only element."""
    now = [100.0]
    monkeypatch.setattr(rates, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_bucket_fills_at_its_rate_up_to_a_seconds_worth(clock: list[float]) -> None:
    limit = Rates(2.0)
    limit.take("ann")
    limit.take("ann")
    with pytest.raises(TooManyRequestsError, match="Try again in 1 s"):
        limit.take("ann")
    limit.take("bob")  # has a bucket of his own
    clock[0] += 0.5
    limit.take("ann")
    clock[0] += 60
    for _ in range(2):
        limit.take("ann")
    limit.owe("ann", 5)
    with pytest.raises(TooManyRequestsError) as refused:
        limit.take("ann")
    assert refused.value.retry_after_s == 3  # six tokens until there is one again
    Rates(None).take("ann")


def test_a_key_that_asks_too_often_is_told_when_to_come_back(bundle: Bundle, clock: list[float]) -> None:
    engine = Engine(bundle, Limits(max_requests_per_s=1.0))
    with TestClient(create_app(engine, SqliteHistories(), Keys(api=(ANN, BOB)))) as client:

        def ask(key: str, route: str = "/v1/recommend", body: dict[str, Any] = ASK) -> Any:
            return client.post(route, json=body, headers={"authorization": f"Bearer {key}"})

        assert ask(ANN).status_code == 200
        refused = ask(ANN)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json() == {"reason": "too many requests with this key. Try again in 1 s."}
        assert ask(BOB, "/v1/recommend/batch", {"requests": [ASK] * 3}).status_code == 200
        assert ask(BOB).headers["retry-after"] == "3"
        assert client.get("/healthz").status_code == 200  # whoever watches the server is never refused
        clock[0] += 1
        assert (ask(ANN).status_code, ask(BOB).status_code) == (200, 429)


def test_what_the_collector_passes_over_is_freed_all_the_same(small_bundle: Path) -> None:
    """A bundle that another takes the place of: its memory goes with its last user."""
    engine = load_engine(small_bundle, Limits())
    parts = [weakref.ref(part) for part in (engine, engine.catalogue, engine.bundle.model)]
    threshold = gc.get_threshold()
    gc.disable()
    spare_collector()
    try:
        assert gc.get_freeze_count() > 0
        del engine
        assert [part() for part in parts] == [None, None, None]
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)
        gc.enable()
