"""The endpoint: the evaluator's items and scores behind the user's own keys, and a reason for every refusal."""

import json

import numpy as np
import pytest
from fastapi.testclient import TestClient

from onerec.bundle import Bundle
from onerec.serving.app import create_app
from onerec.serving.engine import Engine
from onerec.serving.limits import Limits

LIMITS = Limits(max_k=30, max_beams=40, max_history_items=25, max_excluded_items=38, max_body_bytes=2_000)


@pytest.fixture(scope="module")
def bundle(small_bundle):
    return Bundle.load(small_bundle)


@pytest.fixture(scope="module")
def engine(bundle):
    return Engine(bundle, LIMITS)


@pytest.fixture(scope="module")
def client(engine):
    with TestClient(create_app(engine)) as client:
        yield client


def recommend(client, **request):
    response = client.post("/v1/recommend", json=request)
    assert response.status_code == 200, response.text
    return response.json()


def refusal(response, status=400):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert set(answer) == {"reason"}
    return answer["reason"]


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("history", [[], [103], [139, 100, 100, 117], list(range(100, 120))])
def test_answers_what_the_evaluator_ranks(client, bundle, history, exclude_seen):
    expected = bundle.recommender().recommend([np.array(history, dtype=np.int64) - 100], 10, exclude_seen)
    answer = recommend(client, history=history, k=10, exclude_seen=exclude_seen)
    assert [item["id"] for item in answer["items"]] == (expected.items_BK[0] + 100).tolist()
    np.testing.assert_array_equal([item["score"] for item in answer["items"]], expected.scores_BK[0])
    assert answer["beams"] == 12
    assert answer["history_items_read"] == min(len(history), 8)
    assert answer["bundle"] == bundle.manifest.content_hash


def test_an_item_carries_its_key_semantic_id_and_title(client, bundle):
    items = recommend(client, history=[], k=30, beams=40)["items"]
    assert len(items) == 30
    for item in items:
        assert tuple(item["semantic_id"]) == bundle.table.codes_of(str(item["id"]))
        assert item["title"] == ("139" if item["id"] == 139 else f"Film {item['id']}")


def test_keys_may_be_sent_as_strings(client):
    assert recommend(client, history=["103", 104]) == recommend(client, history=[103, "104"])


def test_exclusion_lies_inside_the_search(client):
    first = recommend(client, history=[101, 102], k=12, beams=12)["items"]
    excluded = [item["id"] for item in first]
    second = recommend(client, history=[101, 102], k=12, beams=12, exclude=[*excluded, excluded[0]])["items"]
    assert len(second) == 12
    assert not {item["id"] for item in second} & {*excluded, 101, 102}


def test_with_every_item_in_the_beams_exclusion_only_takes_items_out(client):
    everything = recommend(client, history=[101], k=30, beams=40, exclude_seen=False)["items"]
    excluded = [everything[0]["id"], everything[7]["id"]]
    left = recommend(client, history=[101], k=28, beams=40, exclude_seen=False, exclude=excluded)["items"]
    assert left == [item for item in everything if item["id"] not in excluded]


def test_fewer_items_only_where_fewer_are_allowed(client):
    exclude = list(range(100, 137))
    assert {item["id"] for item in recommend(client, history=[], k=10, exclude=exclude)["items"]} == {137, 138, 139}
    assert len(recommend(client, history=[137, 138], k=10, exclude=exclude)["items"]) == 1
    assert recommend(client, history=[137, 138, 139], k=10, exclude=exclude)["items"] == []


def test_k_beyond_the_bundles_beams_widens_the_search(client):
    answer = recommend(client, history=[103], k=20)
    assert (len(answer["items"]), answer["beams"]) == (20, 20)


def test_the_exact_list_is_that_of_beams_as_wide_as_the_catalogue(client):
    answer = recommend(client, history=[103, 110], k=5, beams=5, exact=True)
    everything = recommend(client, history=[103, 110], k=5, beams=40)
    assert [item["id"] for item in answer["items"]] == [item["id"] for item in everything["items"]]
    assert answer["expansions"] > 2
    assert "expansions" not in everything


def test_milliseconds_on_request(client):
    assert "milliseconds" not in recommend(client, history=[103])
    assert set(recommend(client, history=[103], timings=True)["milliseconds"]) == {"encode", "search"}


@pytest.mark.parametrize(
    ("request_body", "reason"),
    [
        ({"history": [103, "x", 7]}, "history: 2 of 3 item ids are not in the catalogue: 'x', 7. "),
        ({"history": [], "exclude": ["103 "]}, "exclude: 1 of 1 item ids are not in the catalogue: '103 '. "),
        ({"history": ["x"] * 22}, "'x' and 2 more. "),
        ({"history": ["é" * 100]}, "é…. "),
        ({"history": [100] * 26}, "history: found 26 items, expected at most 25."),
        ({"history": [], "exclude": [100] * 39}, "exclude: found 39 items, expected at most 38."),
        ({"history": [], "k": 31}, "k: found 31, expected at most 30."),
        ({"history": [], "beams": 41}, "beams: found 41, expected at most 40."),
        ({"history": [], "k": 5, "beams": 4}, "beams: found 4 for k = 5, expected at least k. "),
        ({"history": [], "k": 0}, "body.k: Input should be greater than or equal to 1"),
        ({"history": [], "k": "5"}, "body.k: Input should be a valid integer"),
        ({"history": [], "k": True}, "body.k: Input should be a valid integer"),
        ({"history": [], "beams": -1}, "body.beams: "),
        ({"history": [1.5]}, "body.history.0."),
        ({"history": [None]}, "body.history.0."),
        ({"history": [True]}, "body.history.0."),
        ({"history": "103"}, "body.history: Input should be a valid list"),
        ({"k": 3}, "body.history: Field required"),
        ({"history": [], "topk": 3}, "body.topk: Extra inputs are not permitted"),
        ([], "body: "),
    ],
)
def test_a_bad_request_is_refused_with_its_reason(client, request_body, reason):
    assert reason in refusal(client.post("/v1/recommend", json=request_body))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "body: Field required"),
        (b'{"history": [', "body: not valid JSON at character 13"),
        (b"\xff\xfe", ""),
        (b'{"history": [], "k": NaN}', "body.k: "),
        (b'{"history": ["\\ud800"]}', "not in the catalogue: "),
        (b'{"history": [], "\\ud800": 1}', "body: Input should be a valid string"),
        (b"[" * 1_900, ""),
        (b'{"history": [' + b"9" * 1_900 + b"]}", ""),
    ],
    ids=["empty", "cut", "no text", "NaN", "surrogate", "surrogate key", "deep", "huge"],
)
def test_a_body_that_is_no_proper_json_is_refused(client, body, reason):
    headers = {"content-type": "application/json"}
    assert reason in refusal(client.post("/v1/recommend", content=body, headers=headers))


def test_a_body_beyond_the_limit_is_refused_whether_its_length_is_declared_or_not(client):
    body = json.dumps({"history": ["x" * 2_000]}).encode()
    headers = {"content-type": "application/json"}
    reason = "body: expected at most 2000 bytes, found more."
    assert refusal(client.post("/v1/recommend", content=body, headers=headers), 413) == reason
    streamed = client.post("/v1/recommend", content=iter([body[:500], body[500:]]), headers=headers)
    assert refusal(streamed, 413) == reason


def test_other_errors_are_json_too(client):
    assert refusal(client.get("/v2/recommend"), 404) == "Not Found"
    response = client.get("/v1/recommend")
    assert refusal(response, 405) == "Method Not Allowed"
    assert response.headers["allow"] == "POST"


def test_a_failure_of_the_server_is_a_reasoned_500(engine, monkeypatch):
    def fail(request):
        raise RuntimeError("weights hold NaN at some secret place")

    monkeypatch.setattr(engine, "recommend", fail)
    with TestClient(create_app(engine), raise_server_exceptions=False) as client:
        reason = refusal(client.post("/v1/recommend", json={"history": []}), 500)
    assert "log" in reason
    assert "secret" not in reason


def test_health_and_readiness(client, bundle):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {
        "status": "ready",
        "run": "small",
        "bundle": bundle.manifest.content_hash,
        "num_items": 40,
    }


def test_the_openapi_document_is_typed(client):
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/recommend"]["post"]
    assert set(operation["responses"]) == {"200", "4XX"}
    schemas = document["components"]["schemas"]
    assert schemas["RecommendRequest"]["additionalProperties"] is False
    assert schemas["RecommendRequest"]["properties"]["k"]["minimum"] == 1
    assert set(schemas["RecommendedItem"]["required"]) == {"id", "score", "semantic_id", "title"}
    assert set(schemas["ErrorResponse"]["required"]) == {"reason"}
