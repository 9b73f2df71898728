"""The shorter way of recommendations, one or a batch: whatever is sent, the answer is FastAPI's own, to the last byte.

A body that calls itself `application/x+json` is JSON to FastAPI and goes its way.
"""

import dataclasses
import json
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, create_model

from onerec.bundle import Bundle
from onerec.serving import direct
from onerec.serving.access import Keys
from onerec.serving.app import create_app
from onerec.serving.batching import Batcher
from onerec.serving.engine import Engine, Query
from onerec.serving.histories import SqliteHistories
from onerec.serving.limits import Limits
from onerec.serving.schema import (
    BeamLevel,
    RecommendBatchResponse,
    RecommendedItem,
    RecommendResponse,
    StageMilliseconds,
)

KEY = "key-of-ann-and-hers"


@pytest.fixture(scope="module")
def client(small_bundle: Path) -> Iterator[TestClient]:
    limits = Limits(batch_wait_ms=0, max_batch_rows=1)  # each alone: who is decoded together is a matter of chance
    app = create_app(Engine(Bundle.load(small_bundle), limits), SqliteHistories(), Keys(api=(KEY,)))
    with TestClient(app) as client:
        yield client


def both(client: TestClient, body: bytes, key: str = KEY, path: str = "/v1/recommend") -> tuple[int, bytes]:
    """Status and body of the answer, which has to be the same both ways."""
    answers = []
    for kind in ("application/json", "application/x+json"):
        headers = {"content-type": kind, "authorization": f"Bearer {key}"}
        response = client.post(path, content=body, headers=headers)
        answers.append((response.status_code, response.headers["content-type"], response.content))
    assert answers[0] == answers[1]
    return answers[0][0], answers[0][2]


IDS = st.sampled_from([100, "101", 139, 139.0, True, None, "x", 10**30])
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "history": st.lists(IDS, max_size=4) | st.sampled_from([None, "103"]),
    "user_id": st.sampled_from(["ann", 7, 1.5, None, "\ud800"]),
    "k": st.sampled_from([1, 5, 5.0, 0, -1, True, "5", float("nan"), 10**30, None]),
    "beams": st.sampled_from([12, 3, 1.0, None, 10**6]),
    "exclude": st.lists(IDS, max_size=3),
    "exclude_seen": st.sampled_from([True, False, 1, "true", None]),
    "exact": st.booleans(),
    "explain": st.booleans(),
    "filter": st.sampled_from([None, {}, {"items": [103, 104]}, {"columns": {"genre": ["noir"]}}, {"items": "x"}]),
    "known": st.sampled_from([{}, {"timestamps": [1, 2.5]}, {"timestamps": [float("inf")]}, {"feedback": {"a": []}}]),
    "profile": st.sampled_from([{}, {"age": 3}, {"age": float("nan")}]),
    "other": st.just(1),
}


QUESTIONS = st.fixed_dictionaries({}, optional=VALUES)
WELL_FORMED = st.fixed_dictionaries(
    {"history": st.lists(st.sampled_from([100, "101", 139, 120, 121]), max_size=4)},
    optional={"k": st.integers(1, 14), "beams": st.sampled_from([12, 20]), "exclude": st.just([103])},
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(QUESTIONS)
def test_any_question_is_answered_as_fastapi_answers_it(client: TestClient, question: dict[str, Any]) -> None:
    both(client, json.dumps(question).encode())


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WELL_FORMED, max_size=4), st.lists(QUESTIONS, max_size=1), st.sampled_from([{}, {}, {}, {"other": 1}]))
def test_any_batch_is_answered_as_fastapi_answers_it(
    client: TestClient, questions: list[Any], odd: list[Any], more: dict[str, int]
) -> None:
    batch = json.dumps({"requests": questions + odd, **more}).encode()
    both(client, batch, path="/v1/recommend/batch")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"history": [103], "k": 3}', 200),
        (b' {"history": [103], "history": [104], "k": 3}\n', 200),  # the last of two counts
        (b'\xef\xbb\xbf{"history": []}', 200),
        ('{"history": []}'.encode("utf-16"), 200),  # as Python's json reads it
        (b'{"history": ["\\ud83d\\ude00"]}', 400),
        (b'{"history": [], "k": 3,}', 400),
        (b'{"history": [], "k": 1e1}', 400),
        (b'{"history": [], "k": 03}', 400),
        (b"null", 400),
        (b"", 400),
        (b"[" * 5_000, 400),
    ],
)
def test_odd_json_is_read_the_same(client: TestClient, body: bytes, status: int) -> None:
    assert both(client, body)[0] == status


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/recommend/batch"])
def test_the_shorter_way_is_taken_and_asks_for_the_key(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    taken, validate = [], direct._validate
    monkeypatch.setattr(direct, "_validate", lambda *sent: taken.append(validate(*sent)) or taken[-1])
    body = b'{"history": [103], "k": 3}'
    if path != "/v1/recommend":
        body = b'{"requests": [' + body + b"]}"
    assert both(client, body, path=path)[0] == 200
    assert both(client, body, key="another-key-of-nobody", path=path) == (
        401,
        b'{"reason":"the request carries no key of this server"}',
    )
    assert [asked is not None for asked in taken] == [True, True]  # the other kind of JSON was not looked at
    headers = {"content-type": "application/json; charset=utf-8", "authorization": f"Bearer {KEY}"}
    assert client.post(path, content=body, headers=headers).status_code == 200
    assert taken[-1] is not None
    page = client.get("/metrics").text
    assert f'onerec_responses_total{{route="{path}",status="401"}} 2.0' in page


def as_models(kind: type[Any]) -> type[BaseModel]:
    """A pydantic model with the fields of a dataclass."""
    fields: dict[str, Any] = {}
    for each in dataclasses.fields(kind):
        required = each.default is dataclasses.MISSING
        fields[each.name] = (kind.__annotations__[each.name], ... if required else each.default)
    return create_model(kind.__name__, **fields)


FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.floats(-20, 0, width=32)
ITEMS = st.builds(
    RecommendedItem, st.text() | st.integers(), FLOATS, st.lists(st.integers(0, 10**6), max_size=4), st.text()
)


@given(
    st.lists(ITEMS, max_size=3),
    st.none() | st.integers(0),
    st.none() | st.builds(StageMilliseconds, history=FLOATS, wait=FLOATS, encode=FLOATS, search=FLOATS),
    st.none() | st.just([BeamLevel(codes=[1, 2], parents=[0, 0], scores=[-0.5, -1e-7])]),
)
def test_an_answer_is_written_as_a_model_of_its_fields_is(
    items: list[RecommendedItem], count: int | None, milliseconds: Any, levels: Any
) -> None:
    told: dict[str, Any] = {"bundle": "b" * 64, "beams": 50, "history_items_read": 7, "milliseconds": milliseconds}
    told |= {"expansions": count, "history_items_unknown": count, "levels": levels}
    answer = RecommendResponse(items=items, **told)
    written = TypeAdapter(RecommendResponse).serializer.to_json(answer, exclude_none=True)
    item_model, model = as_models(RecommendedItem), as_models(RecommendResponse)
    models = [item_model.model_construct(**dataclasses.asdict(item)) for item in items]
    described = create_model("Answer", __base__=model, items=(list[item_model], ...))  # type: ignore[valid-type]
    assert written == described(items=models, **told).model_dump_json(exclude_none=True).encode()
    whole = TypeAdapter(RecommendBatchResponse).serializer.to_json(RecommendBatchResponse([answer] * 2))
    assert TypeAdapter(RecommendBatchResponse).validate_json(whole) == RecommendBatchResponse([answer] * 2)


def test_only_what_comes_alone_waits_for_company(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch whose histories are read comes one by one, as single requests do."""
    alone, submit = [], Batcher.submit

    def note(batcher: Batcher, query: Query, lone: bool = True) -> Awaitable[RecommendResponse]:
        alone.append(lone)
        return submit(batcher, query, lone)

    monkeypatch.setattr(Batcher, "submit", note)
    headers = {"authorization": f"Bearer {KEY}"}
    client.post("/v1/events", json={"events": [{"user_id": "ann", "item_id": "103"}]}, headers=headers)
    inline, stored = {"history": [103]}, {"user_id": "ann"}
    for requests, expected in (([inline, inline], False), ([inline, stored], True), ([inline], True)):
        alone.clear()
        assert both(client, json.dumps({"requests": requests}).encode(), path="/v1/recommend/batch")[0] == 200
        assert alone == [expected] * 2 * len(requests)
    alone.clear()
    both(client, json.dumps(inline).encode())
    assert alone == [True, True]


def test_a_batch_counts_as_what_it_holds_either_way(small_bundle: Path) -> None:
    limits = Limits(batch_wait_ms=0, max_requests_per_s=4)
    engine = Engine(Bundle.load(small_bundle), limits)
    body = b'{"requests": [{"history": []}, {"history": []}, {"history": []}, {"history": []}]}'
    for kind in ("application/json", "application/x+json"):
        with TestClient(create_app(engine, SqliteHistories())) as client:
            headers = {"content-type": kind}
            sent = [client.post("/v1/recommend/batch", content=body, headers=headers) for _ in range(2)]
            assert [answer.status_code for answer in sent] == [200, 429]
            assert "retry-after" in sent[1].headers
