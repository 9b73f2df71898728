"""The endpoint: the evaluator's items and scores behind the user's own keys, and a reason for every refusal."""

import json
import shutil

import numpy as np
import pytest
from fastapi.testclient import TestClient

from onerec.bundle import KIND, Bundle
from onerec.errors import ConfigError
from onerec.serving.access import KEYS_VARIABLE, Keys
from onerec.serving.app import create_app
from onerec.serving.engine import Engine
from onerec.serving.histories import SqliteHistories, StoredEvent
from onerec.serving.limits import Limits
from onerec.serving.schema import RecommendRequest
from tokenizer.artifacts import read_manifest, write_manifest

LIMITS = Limits(max_k=30, max_beams=40, max_history_items=25, max_excluded_items=38, max_body_bytes=2_000)


@pytest.fixture(scope="module")
def bundle(small_bundle):
    return Bundle.load(small_bundle)


@pytest.fixture(scope="module")
def engine(bundle):
    return Engine(bundle, LIMITS)


@pytest.fixture(scope="module")
def client(engine):
    with TestClient(create_app(engine, SqliteHistories())) as client:
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
    assert set(recommend(client, history=[103], timings=True)["milliseconds"]) == {
        "history",
        "wait",
        "encode",
        "search",
    }


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
        ({"k": 3}, "body: Value error, expected either user_id or history, found neither"),
        ({"history": [], "user_id": 1}, "expected either user_id or history, found both"),
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
    def fail(queries):
        raise RuntimeError("weights hold NaN at some secret place")

    monkeypatch.setattr(engine, "answer", fail)
    with TestClient(create_app(engine, SqliteHistories()), raise_server_exceptions=False) as client:
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
    assert set(operation["responses"]) == {"200", "4XX", "503"}
    schemas = document["components"]["schemas"]
    assert schemas["RecommendRequest"]["additionalProperties"] is False
    assert schemas["RecommendRequest"]["properties"]["k"]["minimum"] == 1
    assert set(schemas["RecommendedItem"]["required"]) == {"id", "score", "semantic_id", "title"}
    assert set(schemas["ErrorResponse"]["required"]) == {"reason"}


# ---- stored histories --------------------------------------------------------------------------------------------


def post_events(client, *events):
    fields = ("user_id", "item_id", "timestamp")
    body = {"events": [dict(zip(fields, event, strict=False)) for event in events]}
    return client.post("/v1/events", json=body)


def test_a_user_is_recommended_what_follows_the_stored_events(client):
    assert post_events(client, ("ann", 104, 2.0), ("ann", 103, 1.0), ("bob", 110, 3.0)).json() == {"stored": 3}
    assert post_events(client, ("ann", 117)).status_code == 200  # now, hence the newest
    assert recommend(client, user_id="ann", k=5) == recommend(client, history=[103, 104, 117], k=5)


def test_events_are_stored_all_or_none(client):
    reason = refusal(post_events(client, ("eve", 103), ("eve", "nothing")))
    assert "events: 1 of 2 item ids are not in the catalogue: 'nothing'." in reason
    assert "nothing is stored of 'eve'" in refusal(client.post("/v1/recommend", json={"user_id": "eve"}), 404)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"events": []}, "body.events: "),
        ({"events": [{"user_id": 1}]}, "body.events.0.item_id: Field required"),
        ({"events": [{"user_id": 1, "item_id": 103, "timestamp": "soon"}]}, "body.events.0.timestamp: "),
        ({"events": [{"user_id": 1, "item_id": 103, "liked": True}]}, "body.events.0.liked: Extra inputs"),
    ],
)
def test_bad_events_are_refused(client, body, reason):
    assert reason in refusal(client.post("/v1/events", json=body))


def test_more_events_than_the_limit_are_refused(bundle):
    engine = Engine(bundle, LIMITS.model_copy(update={"max_events": 2}))
    with TestClient(create_app(engine, SqliteHistories())) as client:
        assert "events: found 3, expected at most 2." in refusal(post_events(client, *[("u", 103)] * 3))


def test_events_that_cannot_be_written_are_the_servers_fault(engine):
    histories = SqliteHistories()
    with TestClient(create_app(engine, histories)) as client:
        histories.database.connection.execute("PRAGMA query_only = ON")  # as a disk that takes nothing more
        response = post_events(client, ("ann", 103))
        assert "could not be stored" in refusal(response, 503)
        assert response.headers["retry-after"] == "1"
        assert "nothing can be stored" in refusal(client.get("/readyz"), 503)
        assert recommend(client, history=[103])["items"]
        histories.database.connection.execute("PRAGMA query_only = OFF")
        assert client.get("/readyz").status_code == 200


def test_histories_that_cannot_be_read_are_the_servers_fault(engine):
    histories = SqliteHistories()
    with TestClient(create_app(engine, histories)) as client:
        histories.database.connection.execute("DROP TABLE events")  # as a disk that has lost it
        for response in (client.post("/v1/recommend", json={"user_id": "ann"}), client.get("/v1/users")):
            assert "cannot be read" in refusal(response, 503)


def test_stored_items_that_the_catalogue_has_no_more_are_counted(engine):
    histories = SqliteHistories()
    histories.append([StoredEvent("ann", "103", 1.0), StoredEvent("ann", "gone", 2.0)])
    with TestClient(create_app(engine, histories)) as client:
        answer = recommend(client, user_id="ann", k=3)
        assert answer.pop("history_items_unknown") == 1
        assert answer == recommend(client, history=[103], k=3)


# ---- batches -----------------------------------------------------------------------------------------------------


def test_a_batch_answers_each_request_as_if_it_were_alone(client):
    requests = [
        {"history": [103, 104], "k": 3},
        {"history": list(range(100, 120)), "k": 9, "beams": 12},
        {"history": [], "k": 5, "exclude": [110]},
        {"history": [139], "k": 3, "exact": True},
    ]
    answer = client.post("/v1/recommend/batch", json={"requests": requests}).json()
    for request, together in zip(requests, answer["responses"], strict=True):
        alone = recommend(client, **request)
        scores = [[item.pop("score") for item in found["items"]] for found in (alone, together)]
        assert together == alone
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_a_batch_is_refused_whole(client):
    body = {"requests": [{"history": []}, {"history": ["x"]}]}
    assert "history: 1 of 1" in refusal(client.post("/v1/recommend/batch", json=body))


# ---- operation ---------------------------------------------------------------------------------------------------


def test_keys_close_what_is_under_v1_and_nothing_else(engine):
    key = "k" * 20
    with TestClient(create_app(engine, SqliteHistories(), Keys(api=("other-key-of-the-server", key)))) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {key}"}):
            response = client.post("/v1/recommend", json={"history": []}, headers=headers)
            assert refusal(response, 401) == "the request carries no key of this server"
            assert response.headers["www-authenticate"] == "Bearer"
        allowed = client.post("/v1/recommend", json={"history": []}, headers={"authorization": f"Bearer {key}"})
        assert allowed.status_code == 200
        assert client.get("/healthz").status_code == client.get("/metrics").status_code == 200


def test_short_keys_are_refused(monkeypatch):
    monkeypatch.setenv(KEYS_VARIABLE, "a" * 16 + ", short")
    with pytest.raises(ConfigError, match=f"{KEYS_VARIABLE}: 1 of 2 keys are shorter than 16 characters"):
        Keys.from_environment()
    monkeypatch.setenv(KEYS_VARIABLE, f" {'a' * 16} ,")
    assert Keys.from_environment() == Keys(api=("a" * 16,))


def test_metrics_count_answers_batches_and_events(engine):
    with TestClient(create_app(engine, SqliteHistories())) as client:
        recommend(client, history=[103])
        refusal(client.post("/v1/recommend", json={"history": ["x"]}))
        post_events(client, ("ann", 103), ("ann", 104))
        page = client.get("/metrics").text
    assert 'onerec_responses_total{route="/v1/recommend",status="200"} 1.0' in page
    assert 'onerec_responses_total{route="/v1/recommend",status="400"} 1.0' in page
    assert "onerec_events_total 2.0" in page
    assert "onerec_batch_requests_count 1.0" in page
    assert "onerec_waiting_requests 0.0" in page


def post_bundle(client, folder, key="admin-key-of-the-server"):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return client.post("/v1/admin/bundle", json={"folder": str(folder)}, headers=headers)


@pytest.fixture
def other_bundle(small_bundle, tmp_path):
    """The same catalogue and model with another card, and one beam more by default."""
    folder = shutil.copytree(small_bundle, tmp_path / "other")
    manifest = read_manifest(folder, KIND)
    (folder / "README.md").write_text("another bundle")
    details = {**manifest.details, "run": "other", "num_beams": manifest.details["num_beams"] + 1}
    write_manifest(folder, KIND, manifest.inputs, manifest.config_hash, details)
    return folder


def test_another_bundle_serves_from_the_next_request_on(engine, other_bundle):
    with TestClient(create_app(engine, SqliteHistories(), Keys(admin=("admin-key-of-the-server",)))) as client:
        before = recommend(client, history=[103])
        assert post_bundle(client, other_bundle).json()["run"] == "other"
        after = recommend(client, history=[103])
        assert client.get("/readyz").json()["run"] == "other"
    assert after["bundle"] != before["bundle"]
    assert after["beams"] == before["beams"] + 1


def test_a_broken_bundle_is_refused_and_the_old_one_serves_on(engine, other_bundle):
    (other_bundle / "model.safetensors").write_bytes(b"")
    with TestClient(create_app(engine, SqliteHistories(), Keys(admin=("admin-key-of-the-server",)))) as client:
        before = recommend(client, history=[103])
        for folder in (other_bundle, other_bundle / "none"):
            assert "The old one serves on." in refusal(post_bundle(client, folder))
        assert recommend(client, history=[103]) == before


def test_only_the_admin_key_swaps_bundles(engine, other_bundle):
    api = "key-of-some-other-user"
    with TestClient(create_app(engine, SqliteHistories(), Keys((api,), ("admin-key-of-the-server",)))) as client:
        for key in (None, api):
            refusal(post_bundle(client, other_bundle, key), 401)
    with TestClient(create_app(engine, SqliteHistories())) as client:
        refusal(post_bundle(client, other_bundle), 401)


def test_a_query_is_answered_by_the_bundle_that_checked_it(engine, other_bundle):
    other = Engine(Bundle.load(other_bundle), LIMITS)
    request = RecommendRequest(history=[103], k=7, beams=7)
    assert engine.query(request).kind != other.query(request).kind
    assert engine.query(request).kind == engine.query(request).kind
