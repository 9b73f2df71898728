"""Several servers on one Redis: what one has acknowledged holds in all."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from onerec.errors import ConfigError
from onerec.serving.access import Keys
from onerec.serving.follower import Follower
from onerec.serving.replicas import ReplicaSettings, build_replica, deployment_options, run_replicas
from tests.serving.test_live import ADMIN, AUTHORIZED, ids, put, reason, recommend, remove
from tests.serving.test_redis import PAUSE_S, serve
from tokenizer.settings import load_settings


@pytest.fixture
def pair(live_bundle: Path, redis_server: Any) -> Iterator[tuple[TestClient, TestClient]]:
    with serve(live_bundle, redis_server.address) as first, serve(live_bundle, redis_server.address) as second:
        yield first, second


@pytest.fixture
def vector(live_items: Any) -> list[float]:
    """Of an item like 107."""
    return list(live_items["vector"][7])


def test_a_change_of_one_server_holds_in_the_other(pair: tuple[TestClient, TestClient], vector: list[float]) -> None:
    first, second = pair
    best = ids(second, k=1)[0]
    assert remove(first, best).status_code == 200
    assert best not in ids(second)
    added = put(first, 500, vector=vector).json()
    body = {"events": [{"user_id": "ann", "item_id": 500}]}
    assert second.post("/v1/events", json=body).status_code == 200
    assert put(second, 501, vector=vector).status_code == 200
    assert ids(first, filter={"items": [501]}) == [501]
    assert first.get("/v1/users/ann/history").json()["items"][0]["id"] == 500
    for client in pair:
        shown = client.get("/v1/items/500").json()
        assert shown == {name: value for name, value in added.items() if name != "change"}
        assert set(ids(client)) == {500, 501, *range(100, 140)} - {best}
        assert client.get("/readyz").json()["num_items"] == 41
    assert put(second, best).json()["change"] == "restored"
    assert recommend(first, history=[500], k=45) == recommend(second, history=[500], k=45)


def test_items_put_through_two_servers_at_once_get_places_of_their_own(
    pair: tuple[TestClient, TestClient], vector: list[float]
) -> None:
    """Items of one vector want one semantic ID; two servers that know nothing of each other would both give it."""

    def put_all(client: TestClient, numbers: range) -> None:
        answers.extend(put(client, number, vector=vector).json() for number in numbers)

    answers: list[Any] = []
    numbers = (range(500, 506), range(600, 606))
    threads = [threading.Thread(target=put_all, args=arguments) for arguments in zip(pair, numbers, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer["change"] for answer in answers} == {"added"}
    shown = [[client.get(f"/v1/items/{answer['id']}").json() for answer in answers] for client in pair]
    assert shown[0] == shown[1]
    assert len({tuple(item["semantic_id"]) for item in shown[0]}) == len(answers)  # this tokenizer gives suffixes
    first, second = (recommend(client, history=[], k=52, beams=52)["items"] for client in pair)
    assert first == second
    assert len(first) == 52


def test_while_redis_is_away_each_answers_by_what_it_knows(
    pair: tuple[TestClient, TestClient], redis_server: Any
) -> None:
    first, second = pair
    assert remove(first, 103).status_code == 200
    assert 103 not in ids(second)
    redis_server.kill()
    assert 103 not in ids(second)
    assert "onerec_catalogue_looks_failed_total 1.0" in second.get("/metrics").text
    redis_server.start()
    threading.Event().wait(PAUSE_S)
    assert put(first, 103).json()["change"] == "restored"
    assert 103 in ids(second)


def test_servers_of_two_bundles_give_a_new_item_their_own_places(
    make_live_bundle: Callable[..., Path], live_bundle: Path, redis_server: Any, vector: list[float]
) -> None:
    """As while a new bundle goes round: the change is placed anew by the other's codebooks, and both keep theirs."""
    other = make_live_bundle(quantizer={"codes_per_level": [4, 7], "iterations": 5})
    with serve(live_bundle, redis_server.address) as old, serve(other, redis_server.address) as new:
        places = [put(old, 500, vector=vector).json()["semantic_id"], new.get("/v1/items/500").json()["semantic_id"]]
        assert remove(new, 501).status_code == 404
        assert [client.get("/v1/items/500").json()["semantic_id"] for client in (old, new)] == places
        assert ids(old, filter={"items": [500]}) == ids(new, filter={"items": [500]}) == [500]


def test_a_change_that_cannot_be_taken_up_stops_the_answers(
    make_live_bundle: Callable[..., Path], live_bundle: Path, redis_server: Any, vector: list[float]
) -> None:
    other = make_live_bundle(with_tokenizer=False, quantizer={"codes_per_level": [4, 7], "iterations": 5})
    with serve(live_bundle, redis_server.address) as able, serve(other, redis_server.address) as unable:
        assert put(able, 500, vector=vector).status_code == 200
        refused = unable.post("/v1/recommend", json={"history": []})
        assert "changes of another server cannot be taken up (item '500'" in reason(refused, 503)
        assert ids(able, filter={"items": [500]}) == [500]


def test_a_replica_under_ray_serve_is_the_same_application(live_bundle: Path, redis_server: Any) -> None:
    settings = ReplicaSettings(max_k=60, max_beams=60)
    parts = (str(live_bundle), settings, redis_server.address, Keys(admin=(ADMIN,)), "text", None)
    with TestClient(build_replica(*parts)) as replica, serve(live_bundle, redis_server.address) as alone:
        assert remove(replica, 103).status_code == 200
        assert recommend(replica, history=[104], k=45) == recommend(alone, history=[104], k=45)
        refused = replica.post("/v1/admin/bundle", json={"folder": str(live_bundle)}, headers=AUTHORIZED)
        assert "found one replica of several" in reason(refused)
        assert replica.get("/openapi.json").json() == alone.get("/openapi.json").json()
        own = f'replica="{socket.gethostname()}:{os.getpid()}"'
        figures = [line for line in replica.get("/metrics").text.splitlines() if not line.startswith("#")]
        assert f'onerec_catalogue_changes_total{{change="removed",{own}}} 1.0' in figures
        assert all(own in line for line in figures)
        assert "replica=" not in alone.get("/metrics").text
    options = deployment_options(ReplicaSettings(min_replicas=3, max_replicas=9, target_requests=4, cpus=2))
    assert ADMIN not in repr(Keys(admin=(ADMIN,)))  # Ray may log what a deployment is made from
    scaling = options["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["target_ongoing_requests"]) == (3, 9, 4)
    assert options["ray_actor_options"] == {"num_cpus": 2}


@pytest.mark.parametrize("histories", [None, "state.sqlite"])
def test_replicas_without_a_shared_store_are_refused(live_bundle: Path, histories: str | None) -> None:
    found = "none" if histories is None else r"the SQLite file state\.sqlite"
    with pytest.raises(ConfigError, match=f"histories: found {found}, expected the address of a Redis"):
        run_replicas(live_bundle, ("127.0.0.1", 0), ReplicaSettings(), histories)
    with pytest.raises(ConfigError, match="min_replicas: found 3, expected at most max_replicas, 2"):
        load_settings(ReplicaSettings, overrides=["min_replicas=3"])


def test_a_look_serves_those_who_came_before_it_began() -> None:
    began, gates = [], [asyncio.Event() for _ in range(2)]

    async def look() -> None:
        began.append(len(began))
        await gates[began[-1]].wait()

    async def main() -> None:
        follower = Follower(look)
        early = [asyncio.create_task(follower.caught_up()) for _ in range(3)]
        await asyncio.sleep(0.01)
        late = [asyncio.create_task(follower.caught_up()) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert began == [0]
        gates[0].set()
        await asyncio.gather(*early)
        await asyncio.sleep(0.01)
        assert began == [0, 1]
        assert not any(task.done() for task in late)
        late[0].cancel()  # its client has gone
        gates[1].set()
        await asyncio.gather(*late[1:])
        assert began == [0, 1]

    asyncio.run(main())
