"""What nobody would send: by the OpenAPI document and against it, and good requests with one part replaced.

Whatever is sent, the answer comes, is none of the server's faults, and is of the form that the document promises.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from onerec.bundle import Bundle
from onerec.serving.access import Keys
from onerec.serving.app import create_app
from onerec.serving.engine import Engine
from onerec.serving.histories import SqliteHistories
from onerec.serving.limits import Limits
from tests.serving.test_live import ADMIN, AUTHORIZED

QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}
LIMITS = Limits(max_k=20, max_beams=20, max_history_items=30, max_body_bytes=20_000)
VECTOR = [5.0, 0.0, 0.0, 0.0, 0.0, 0.0]
GOOD: list[tuple[str, str, Any]] = [
    ("POST", "/v1/recommend", {"history": [103, "117"], "k": 5, "beams": 8, "exclude": [104], "exclude_seen": False}),
    ("POST", "/v1/recommend", {"user_id": "ann", "exact": True, "timings": True, "filter": {"items": [103, 110]}}),
    (
        "POST",
        "/v1/recommend",
        {"history": [], "explain": True, "filter": {"columns": {"genre": ["noir"], "year": [1]}}},
    ),
    ("POST", "/v1/recommend", {"history": [103], "known": {"timestamps": [1.0], "feedback": {}}, "profile": {"a": 1}}),
    ("POST", "/v1/recommend", {"user_id": "ann", "wish": {"a": 1.0}, "select": False, "reward_weights": {"a": 1.0}}),
    ("POST", "/v1/recommend/batch", {"requests": [{"history": [103]}, {"history": [], "k": 2}]}),
    (
        "POST",
        "/v1/events",
        {"events": [{"user_id": "ann", "item_id": 103, "timestamp": 1.0}, {"user_id": 7, "item_id": "104"}]},
    ),
    ("PUT", "/v1/items/500", {"fields": {"title": "Neu", "genre": None, "year": 1999}, "vector": VECTOR}),
    ("POST", "/v1/admin/bundle", {"folder": "none"}),
]
TEXTS = st.sampled_from(["", "\x00", "\ud800", "103", "é" * 300, "../../x", "1e400", "genre"]) | st.text(max_size=8)
NUMBERS = st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**64), 10**400, 1e308, float("inf"), float("nan"), -0.0])
ADDRESSABLE = TEXTS.filter(lambda text: text.isprintable() or "\x00" in text)  # no half of a surrogate pair
LEAVES = st.none() | st.booleans() | NUMBERS | st.integers() | st.floats() | TEXTS
JSON = st.recursive(LEAVES, lambda deeper: st.lists(deeper, max_size=4) | st.dictionaries(TEXTS, deeper, max_size=3))


@pytest.fixture(scope="module")
def client(live_bundle: Path) -> Iterator[TestClient]:
    engine = Engine(Bundle.load(live_bundle), LIMITS)
    with TestClient(create_app(engine, SqliteHistories(), Keys(admin=(ADMIN,))), headers=AUTHORIZED) as client:
        client.raise_server_exceptions = False
        client.post("/v1/events", json={"events": [{"user_id": "ann", "item_id": 103}]})
        yield client


def require_reasoned(response: Any) -> None:
    """No fault of the server's, and a reason wherever the answer is a refusal."""
    assert response.status_code < 500, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.status_code == 200 or set(response.json()) == {"reason"}


def test_what_the_document_allows_and_what_it_forbids(client: TestClient) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="no schemathesis in this environment")
    from schemathesis import GenerationMode

    document = client.get("/openapi.json").json()
    document["paths"].pop("/metrics")  # text, which anybody may read
    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 12

    def play(operation: Any, mode: GenerationMode) -> None:
        @settings(max_examples=12, phases=[Phase.generate], **QUIET)
        @given(case=operation.as_strategy(generation_mode=mode))
        def one(case: Any) -> None:
            sent = case.as_transport_kwargs()
            sent.pop("cookies", None)
            headers = {**(sent.pop("headers", None) or {}), **AUTHORIZED}
            response = client.request(**sent, headers=headers)
            case.validate_response(response, checks=CHECKS)

        one()

    checks = schemathesis.checks
    CHECKS = [
        checks.not_a_server_error,
        *checks.CHECKS.get_by_names(
            ["status_code_conformance", "content_type_conformance", "response_schema_conformance"]
        ),
    ]
    for operation in operations:
        play(operation, GenerationMode.POSITIVE)
        if operation.body:
            play(operation, GenerationMode.NEGATIVE)


def places(body: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all parts of a JSON value, the whole first."""
    yield path
    if isinstance(body, dict | list):
        for key, part in body.items() if isinstance(body, dict) else enumerate(body):
            yield from places(part, (*path, key))


def replaced(body: Any, path: tuple[Any, ...], part: Any) -> Any:
    """The value with another part at a path."""
    if not path:
        return part
    body = copy.deepcopy(body)
    parent = body
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = part
    return body


@st.composite
def requests_with_a_strange_part(draw: st.DrawFn) -> tuple[str, str, bytes]:
    method, route, body = draw(st.sampled_from(GOOD))
    body = replaced(body, draw(st.sampled_from(list(places(body)))), draw(JSON))
    return method, route, json.dumps(body).encode()


@settings(max_examples=300, phases=[Phase.generate], **QUIET)
@given(request=requests_with_a_strange_part())
def test_a_good_request_with_one_strange_part(client: TestClient, request: tuple[str, str, bytes]) -> None:
    method, route, body = request
    headers = {"content-type": "application/json"}
    require_reasoned(client.request(method, route, content=body, headers=headers))


@settings(max_examples=60, phases=[Phase.generate], **QUIET)
@given(
    body=st.binary(max_size=40), route=st.sampled_from(GOOD), kind=st.sampled_from(["application/json", "text/plain"])
)
def test_any_bytes_for_a_body(client: TestClient, body: bytes, route: tuple[str, str, Any], kind: str) -> None:
    require_reasoned(client.request(route[0], route[1], content=body, headers={"content-type": kind}))


@settings(max_examples=60, phases=[Phase.generate], **QUIET)
@given(text=ADDRESSABLE, number=st.integers() | ADDRESSABLE)
def test_any_text_in_an_address(client: TestClient, text: str, number: Any) -> None:
    require_reasoned(client.get("/v1/items", params={"text": text, "limit": number}))
    for parts in (("v1", "items", text), ("v1", "users", text, "history")):
        response = client.get("/" + "/".join(quote(part, safe="") for part in parts))
        require_reasoned(response)


def test_the_server_still_answers_after_all_that(client: TestClient) -> None:
    answer = client.post("/v1/recommend", json={"history": [103], "k": 3})
    assert len(answer.json()["items"]) == 3
