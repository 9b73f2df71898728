"""The catalogue changes over HTTP while requests are answered; filters and explanations of what is answered."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from onerec.bundle import Bundle
from onerec.serving.access import Keys
from onerec.serving.app import create_app
from onerec.serving.changes import SqliteChanges
from onerec.serving.engine import Engine
from onerec.serving.histories import SqliteHistories
from onerec.serving.limits import Limits

ADMIN = "admin-key-of-the-server"
AUTHORIZED = {"authorization": f"Bearer {ADMIN}"}
LIMITS = Limits(max_k=60, max_beams=60, max_filter_values=45)


def start(folder: Path, changes: SqliteChanges | None = None) -> TestClient:
    return TestClient(create_app(Engine(Bundle.load(folder), LIMITS), SqliteHistories(), Keys(admin=(ADMIN,)), changes))


@pytest.fixture
def client(live_bundle: Path) -> Iterator[TestClient]:
    with start(live_bundle) as client:
        yield client


@pytest.fixture
def vector(live_items: Any) -> list[float]:
    """Of an item like 107."""
    return list(live_items["vector"][7])


def put(client: TestClient, item_id: object, **body: object) -> Any:
    return client.put(f"/v1/items/{item_id}", json=body, headers=AUTHORIZED)


def remove(client: TestClient, item_id: object) -> Any:
    return client.delete(f"/v1/items/{item_id}", headers=AUTHORIZED)


def recommend(client: TestClient, **request: object) -> Any:
    response = client.post("/v1/recommend", json=request)
    assert response.status_code == 200, response.text
    return response.json()


def ids(client: TestClient, **request: object) -> list[object]:
    return [item["id"] for item in recommend(client, **{"history": [], "k": 45, "beams": 45, **request})["items"]]


def reason(response: Any, status: int = 400) -> str:
    assert response.status_code == status, response.text
    answer = response.json()
    assert set(answer) == {"reason"}
    return str(answer["reason"])


# ---- changes -----------------------------------------------------------------------------------------------------


def test_a_new_item_can_be_returned_and_stands_in_histories(client: TestClient, vector: list[float]) -> None:
    added = put(client, 500, fields={"title": "Neu", "genre": "noir"}, vector=vector)
    assert added.status_code == 200
    assert (added.json()["change"], added.json()["available"]) == ("added", True)
    assert set(ids(client)) == {500, *range(100, 140)}
    (item,) = recommend(client, history=[103], filter={"items": ["500"]}, k=5)["items"]
    assert (item["id"], item["title"], item["semantic_id"]) == (500, "Neu", added.json()["semantic_id"])
    assert client.post("/v1/events", json={"events": [{"user_id": "ann", "item_id": 500}]}).status_code == 200
    answer = recommend(client, user_id="ann", k=45, beams=45)
    assert answer["history_items_read"] == 1
    assert 500 not in [found["id"] for found in answer["items"]]
    assert client.get("/readyz").json()["num_items"] == 41
    assert client.get("/v1/items/500").json()["fields"] == {"title": "Neu", "genre": "noir", "year": None}


def test_old_items_keep_their_scores_beside_a_new_one(client: TestClient, vector: list[float]) -> None:
    before = {item["id"]: item["score"] for item in recommend(client, history=[103], k=40, beams=40)["items"]}
    put(client, 500, vector=vector)
    after = {item["id"]: item["score"] for item in recommend(client, history=[103], k=41, beams=60)["items"]}
    after.pop(500)
    assert after == pytest.approx(before, abs=1e-5)


def test_a_removed_item_is_in_no_answer_and_comes_back_as_it_was(client: TestClient) -> None:
    before = recommend(client, history=[103, 117], k=10)
    best = before["items"][0]["id"]
    assert remove(client, best).json()["change"] == "removed"
    assert remove(client, best).json()["available"] is False  # again, as after an answer that got lost
    after = recommend(client, history=[103, 117], k=10)
    assert len(after["items"]) == 10
    assert best not in [item["id"] for item in after["items"]]
    assert best not in ids(client, filter={"items": [best]})
    assert recommend(client, history=[best], k=3)["history_items_read"] == 1
    assert put(client, best).json()["change"] == "restored"
    assert put(client, best).json()["change"] == "updated"
    assert recommend(client, history=[103, 117], k=10) == before


def test_the_removal_during_a_search_is_kept_by_its_answer(live_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Bundle.load(live_bundle), LIMITS)
    with TestClient(create_app(engine, SqliteHistories(), Keys(admin=(ADMIN,)))) as client:
        best = ids(client, k=1)[0]
        answer, removed = engine.answer, []

        def answer_late(queries: Any) -> Any:
            responses = answer(queries)
            if not removed:  # the search is over, its answer on the way
                removed.append(remove(client, best).status_code)
            return responses

        monkeypatch.setattr(engine, "answer", answer_late)
        assert ids(client, k=1) != [best]
        assert removed == [200]


def test_no_answer_of_a_batch_is_outdated_by_the_others(live_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Bundle.load(live_bundle), LIMITS)
    with TestClient(create_app(engine, SqliteHistories(), Keys(admin=(ADMIN,)))) as client:
        best = ids(client, k=1)[0]
        answer, calls = engine.answer, []

        def answer_late(queries: Any) -> Any:
            responses = answer(queries)
            calls.append(len(queries))
            if len(calls) == 2:  # the first request of the batch has its answer
                assert remove(client, best).status_code == 200
            return responses

        monkeypatch.setattr(engine, "answer", answer_late)
        requests = [{"history": [], "k": 1, "beams": beams} for beams in (44, 45)]
        responses = client.post("/v1/recommend/batch", json={"requests": requests}).json()["responses"]
        assert [len(response["items"]) for response in responses] == [1, 1]
        assert all(response["items"][0]["id"] != best for response in responses)


def test_more_changes_than_may_wait_are_refused(live_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, entered, gate, answers = SqliteChanges(), threading.Event(), threading.Event(), []
    write = changes.write

    def write_late(items: Any, after: int) -> int:
        entered.set()
        gate.wait(timeout=60)
        return write(items, after)

    monkeypatch.setattr(changes, "write", write_late)
    engine = Engine(Bundle.load(live_bundle), LIMITS.model_copy(update={"max_waiting": 1}))
    with TestClient(create_app(engine, SqliteHistories(), Keys(admin=(ADMIN,)), changes)) as client:
        first = threading.Thread(target=lambda: answers.append(remove(client, 103).status_code))
        first.start()
        entered.wait(timeout=60)
        response = remove(client, 104)
        assert "1 changes are waiting already" in reason(response, 503)
        gate.set()
        first.join()
        assert answers == [200]
        assert remove(client, 104).status_code == 200


def test_requests_go_on_while_the_catalogue_changes(client: TestClient, vector: list[float]) -> None:
    failures: list[str] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            gone = set(removed)
            response = client.post("/v1/recommend", json={"history": [103], "k": 45, "beams": 45})
            if response.status_code != 200:
                failures.append(response.text)
            elif wrong := gone & {item["id"] for item in response.json()["items"]}:
                failures.append(f"{wrong} after removal")

    removed: list[int] = []
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(20):
        assert put(client, 500 + number, vector=vector).status_code == 200
        assert remove(client, 100 + number).status_code == 200
        removed.append(100 + number)
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(ids(client)) == {*range(120, 140), *range(500, 520)}
    assert 'onerec_catalogue_changes_total{change="added"} 20.0' in client.get("/metrics").text


def test_changes_survive_a_restart_with_their_semantic_ids(
    live_bundle: Path, tmp_path: Path, vector: list[float]
) -> None:
    path = tmp_path / "state.sqlite"
    with start(live_bundle, SqliteChanges(path)) as client:
        added = put(client, "500", fields={"title": "Neu"}, vector=vector).json()
        remove(client, 103)
        put(client, 104, fields={"genre": "western"})
        before = recommend(client, history=[103], k=45, beams=45)
    with start(live_bundle, SqliteChanges(path)) as client:
        assert recommend(client, history=[103], k=45, beams=45) == before
        assert client.get("/v1/items/500").json() == {key: added[key] for key in added if key != "change"}
        assert ids(client, filter={"columns": {"genre": ["western"]}}) == [104]


def test_changes_go_over_to_the_next_bundle(
    client: TestClient, make_live_bundle: Callable[..., Path], vector: list[float]
) -> None:
    put(client, 500, fields={"title": "Neu"}, vector=vector)
    remove(client, 103)
    blind = make_live_bundle(seed=1, quantizer={"codes_per_level": [8, 4], "iterations": 5}, with_tokenizer=False)
    other = make_live_bundle(seed=1, quantizer={"codes_per_level": [8, 4], "iterations": 5})
    swap = {"url": "/v1/admin/bundle", "headers": AUTHORIZED}
    refused = client.post(json={"folder": str(blind)}, **swap)
    assert "without its tokenizer and cannot place new items. " in reason(refused, 400)
    assert client.post(json={"folder": str(other)}, **swap).json()["num_items"] == 40
    assert set(ids(client)) == {500, *range(100, 140)} - {103}
    twin = client.get("/v1/items/107").json()["semantic_id"]
    assert client.get("/v1/items/500").json()["semantic_id"][:2] == twin[:2]


def test_a_bundle_without_its_tokenizer_answers_409(make_live_bundle: Callable[..., Path], vector: list[float]) -> None:
    with start(make_live_bundle(with_tokenizer=False)) as client:
        assert "without its tokenizer" in reason(put(client, 500, vector=vector), 409)
        assert remove(client, 103).status_code == 200
        assert put(client, 103, fields={"title": "Back"}).json()["change"] == "restored"


def test_only_the_admin_key_changes_the_catalogue(live_bundle: Path) -> None:
    api = "key-of-some-other-user"
    engine = Engine(Bundle.load(live_bundle), LIMITS)
    with TestClient(create_app(engine, SqliteHistories(), Keys((api,), (ADMIN,)))) as client:
        for headers in ({}, {"authorization": f"Bearer {api}"}):
            reason(client.put("/v1/items/103", json={}, headers=headers), 401)
            reason(client.delete("/v1/items/103", headers=headers), 401)
        reason(client.get("/v1/items/103"), 401)
        assert client.get("/v1/items/103", headers={"authorization": f"Bearer {api}"}).json()["available"] is True


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("500", {}, "item '500': new item: expected a vector of width 6, found neither"),
        ("500", {"vector": []}, "body.vector: "),
        ("500", {"vector": [1.0]}, "found a width of 1"),
        ("500", {"vector": ["x"]}, "body.vector.0: "),
        ("500", {"colour": "red"}, "body.colour: Extra inputs"),
        ("500", {"fields": {"colour": "red"}}, "fields: found 'colour'"),
        ("500", {"fields": {"title": ["a"]}}, "body.fields.title."),
        ("film", {"vector": [1.0] * 6}, "id: found 'film'"),
        ("x" * 600, {"vector": [1.0] * 6}, "path.item_id: "),
    ],
)
def test_a_bad_item_is_refused_with_its_reason(client: TestClient, path: str, body: Any, expected: str) -> None:
    assert expected in reason(put(client, path, **body))
    assert client.get("/readyz").json()["num_items"] == 40


def test_text_that_nothing_can_store_is_refused(client: TestClient) -> None:
    headers = {**AUTHORIZED, "content-type": "application/json"}
    content = b'{"fields": {"title": "\\ud800"}}'
    assert "surrogate" in reason(client.put("/v1/items/103", content=content, headers=headers))
    events = b'{"events": [{"user_id": "\\ud800", "item_id": 103}]}'
    assert "surrogate" in reason(client.post("/v1/events", content=events, headers=headers))
    reason(client.post("/v1/recommend", content=b'{"user_id": "\\ud800"}', headers=headers))


def test_unknown_items_are_404(client: TestClient) -> None:
    for response in (remove(client, 999), client.get("/v1/items/999"), client.get("/v1/items/a%2Fb")):
        assert "not in the catalogue" in reason(response, 404)


def test_a_change_that_cannot_be_stored_does_not_happen(live_bundle: Path) -> None:
    changes = SqliteChanges()
    with start(live_bundle, changes) as client:
        changes.database.connection.execute("PRAGMA query_only = ON")  # as a disk that takes nothing more
        response = remove(client, 103)
        assert "nothing has changed" in reason(response, 503)
        assert response.headers["retry-after"] == "1"
        assert "nothing can be stored" in reason(client.get("/readyz"), 503)
        assert 103 in ids(client)


# ---- filters -----------------------------------------------------------------------------------------------------


def test_k_items_come_back_whenever_k_pass(client: TestClient) -> None:
    horror = [item for item in range(100, 140) if item % 4 == 2]
    chosen = {"columns": {"genre": ["horror"]}}
    assert sorted(ids(client, k=10, beams=10, filter=chosen)) == horror
    assert len(ids(client, k=8, beams=8, filter=chosen, exclude=horror[:2], exclude_seen=True, history=[103])) == 8
    assert len(ids(client, k=10, beams=10, filter=chosen, exclude=horror[:2])) == 8
    assert ids(client, filter={"columns": {"genre": ["western"]}}) == []
    assert sorted(ids(client, filter={"columns": {"year": [1990]}, "items": [100, 101, 103]})) == [100, 103]


def test_a_filter_only_takes_items_out(client: TestClient) -> None:
    everything = recommend(client, history=[103], k=40, beams=40)["items"]
    horror = recommend(client, history=[103], k=40, beams=40, filter={"columns": {"genre": ["horror"]}})["items"]
    expected = [item for item in everything if item["id"] % 4 == 2]
    assert [item["id"] for item in horror] == [item["id"] for item in expected]
    scores = [[item["score"] for item in items] for items in (horror, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    exact = recommend(client, history=[103], k=3, beams=3, exact=True, filter={"columns": {"genre": ["horror"]}})
    assert [item["id"] for item in exact["items"]] == [item["id"] for item in expected[:3]]


def test_requests_with_other_filters_are_answered_together_as_if_alone(client: TestClient) -> None:
    requests = [
        {"history": [103], "k": 5, "beams": 45, "filter": {"columns": {"genre": [genre]}}}
        for genre in ("horror", "noir", "horror", "western")
    ]
    batch = client.post("/v1/recommend/batch", json={"requests": requests}).json()["responses"]
    for request, together in zip(requests, batch, strict=True):
        alone = recommend(client, **request)
        assert [item["id"] for item in together["items"]] == [item["id"] for item in alone["items"]]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"items": [999]}, "filter.items: 1 of 1 item ids are not in the catalogue"),
        ({"columns": {"colour": ["red"]}}, "filter.columns: found 'colour', expected columns of the catalogue: title"),
        ({"columns": {"genre": []}}, "body.filter.columns.genre: "),
        ({"columns": {"genre": "noir"}}, "body.filter.columns.genre: "),
        ({"genre": "noir"}, "body.filter.genre: Extra inputs"),
        (
            {"items": [103] * 44, "columns": {"genre": ["a", "b"]}},
            "filter: found 46 items and values, expected",
        ),
    ],
)
def test_a_bad_filter_is_refused(client: TestClient, chosen: Any, expected: str) -> None:
    assert expected in reason(client.post("/v1/recommend", json={"history": [], "filter": chosen}))


# ---- explanations ------------------------------------------------------------------------------------------------


def test_the_beams_of_an_answer_lead_to_its_items(client: TestClient) -> None:
    plain = recommend(client, history=[103, 117], k=5, beams=8)
    explained = recommend(client, history=[103, 117], k=5, beams=8, explain=True)
    levels = explained.pop("levels")
    assert explained == plain
    assert [len(level["codes"]) for level in levels[1:]] == [8, 8]
    for place, item in enumerate(explained["items"]):
        node, codes = place, []
        for number in reversed(range(len(levels))):
            codes.append(levels[number]["codes"][node])
            parent = levels[number]["parents"][node]
            above = levels[number - 1]["scores"][parent] if number else 0.0
            assert levels[number]["scores"][node] <= above
            node = parent
        assert codes[::-1] == item["semantic_id"]
        assert levels[-1]["scores"][place] == item["score"]


def test_an_explanation_and_an_exact_search_exclude_each_other(client: TestClient) -> None:
    body = {"history": [], "explain": True, "exact": True}
    assert "the exact search keeps no beams" in reason(client.post("/v1/recommend", json=body))


def test_milliseconds_of_every_stage(client: TestClient) -> None:
    client.post("/v1/events", json={"events": [{"user_id": "ann", "item_id": 103}]})
    stages = recommend(client, user_id="ann", timings=True)["milliseconds"]
    assert set(stages) == {"history", "wait", "encode", "search"}
    assert all(milliseconds > 0 for milliseconds in stages.values())


# ---- looking things up -------------------------------------------------------------------------------------------


def test_users_histories_and_items_can_be_looked_up(client: TestClient) -> None:
    events = [("ann", 103, 1.0), ("bob", 104, 2.0), ("ann", 117, 3.0), (7, 105, 4.0)]
    body = {"events": [dict(zip(("user_id", "item_id", "timestamp"), event, strict=True)) for event in events]}
    client.post("/v1/events", json=body)
    assert client.get("/v1/users").json() == {"users": ["7", "ann", "bob"]}
    assert client.get("/v1/users?limit=1").json() == {"users": ["7"]}
    assert [item["id"] for item in client.get("/v1/users/ann/history").json()["items"]] == [103, 117]
    assert client.get("/v1/users/nobody/history").json() == {"user_id": "nobody", "items": []}
    found = client.get("/v1/items", params={"text": "FILM 12", "limit": 3}).json()["items"]
    assert [item["id"] for item in found] == [120, 121, 122]
    assert [item["id"] for item in client.get("/v1/items?text=107").json()["items"]] == [107]
    assert len(client.get("/v1/items").json()["items"]) == 20
    assert "query.limit" in reason(client.get("/v1/items?limit=0"))


def test_the_filtered_search_equals_the_evaluators_among_what_passes(client: TestClient, live_bundle: Path) -> None:
    bundle = Bundle.load(live_bundle)
    expected = bundle.recommender(40).recommend([np.array([3])], 40, exclude_seen=True)
    passing = [item for item in expected.items_BK[0].tolist() if item >= 0 and item % 4 == 2]
    assert ids(client, history=[103], filter={"columns": {"genre": ["horror"]}}) == [100 + item for item in passing]
