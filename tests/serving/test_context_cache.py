"""Encoded histories that are kept: the same answers, of the history as it is now, within the memory allowed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from onerec.bundle import Bundle
from onerec.data.histories import Histories
from onerec.decoding.context_rows import num_bytes, put_together, take_apart
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.transitions import Transitions
from onerec.serving.access import Keys
from onerec.serving.app import create_app
from onerec.serving.context_cache import ContextCache
from onerec.serving.engine import Engine
from onerec.serving.histories import SqliteHistories
from onerec.serving.limits import Limits
from tests.serving.test_live import ADMIN, AUTHORIZED, put, recommend

HISTORIES = [[3, 17, 21], [], [5], list(range(12)), [3, 17, 21, 3]]
SHAPES: list[dict[str, Any]] = [
    {"repeat_bias": True, "prefix_vectors": True, "num_id_heads": 2, "id_head_width": 4, "positions": "from_end"},
    {"context": "lazy", "num_kv_layers": 1, "num_decoder_layers": 3},
    {"context": "bidirectional"},
]


@pytest.fixture(scope="module", params=range(len(SHAPES)), ids=["recipe", "lazy", "bidirectional"])
def recommender(request: pytest.FixtureRequest, make_live_bundle: Callable[..., Path]) -> OneRecRecommender:
    bundle = Bundle.load(make_live_bundle(shape=SHAPES[request.param]))
    items = np.random.default_rng(0).integers(bundle.table.num_items, size=200).astype(np.int32)
    training = Histories(np.arange(0, 201, 10), items, np.arange(200), np.zeros(200, dtype=np.uint8))
    return replace(bundle, transitions=Transitions.of(0.5, training, bundle.table.num_items)).recommender()


def same(recommender: OneRecRecommender, found: Any, histories: list[list[int]]) -> bool:
    """Whether a search after a context finds what it finds after a new one."""
    expected = recommender.search(recommender.encode(histories), 10, num_beams=20)
    ranking = recommender.search(found, 10, num_beams=20)
    np.testing.assert_allclose(ranking.scores_BK, expected.scores_BK, atol=1e-4)
    return bool((ranking.items_BK == expected.items_BK).all())


def test_a_batch_taken_apart_and_put_together_otherwise_is_the_same(recommender: OneRecRecommender) -> None:
    order = [3, 1, 0, 4, 2]
    rows = list(take_apart(recommender.encode(HISTORIES)))
    assert same(recommender, put_together([rows[place] for place in order]), [HISTORIES[place] for place in order])
    assert same(recommender, put_together([rows[2]]), [HISTORIES[2]])
    assert num_bytes(rows[2]) < num_bytes(rows[0]) < num_bytes(rows[3])  # without the padding


def test_only_what_is_new_is_encoded(recommender: OneRecRecommender, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, encoded = recommender.encode, []
    monkeypatch.setattr(recommender, "encode", lambda histories: encoded.append(len(histories)) or encode(histories))
    cache = ContextCache(2**20)
    found = [cache.encode(recommender, batch) for batch in (HISTORIES[:2], HISTORIES, HISTORIES[::-1], HISTORIES[1:2])]
    assert encoded == [2, 3]
    assert cache.num_found == 2 + 5 + 1
    monkeypatch.undo()
    for context, batch in zip(found, (HISTORIES[:2], HISTORIES, HISTORIES[::-1], HISTORIES[1:2]), strict=True):
        assert same(recommender, context, batch)


def test_what_was_not_asked_for_the_longest_goes_first(recommender: OneRecRecommender) -> None:
    size = num_bytes(next(take_apart(recommender.encode([[1, 2]]))))
    cache = ContextCache(2 * size)
    for items, num_found in (([1, 2], 0), ([3, 4], 0), ([1, 2], 1), ([5, 6], 1), ([1, 2], 2), ([3, 4], 2)):
        cache.encode(recommender, [items])
        assert cache.num_found == num_found
    assert cache.encode(recommender, [list(range(8))]).num_requests == 1  # more than may be kept


def test_an_endpoint_answers_by_the_history_and_the_catalogue_of_now(live_bundle: Path, live_items: Any) -> None:
    def answers(limits: Limits) -> tuple[list[Any], str]:
        engine = Engine(Bundle.load(live_bundle), limits)
        app = create_app(engine, SqliteHistories(), Keys(admin=(ADMIN,)))
        with TestClient(app, headers=AUTHORIZED) as client:
            found = []
            for item in (103, 117, 117, 121):
                client.post("/v1/events", json={"events": [{"user_id": "ann", "item_id": item}]})
                found += [recommend(client, user_id="ann", k=5, exclude_seen=False)["items"] for _ in range(2)]
            assert put(client, 500, vector=list(live_items["vector"][7])).status_code == 200
            found += [recommend(client, user_id="ann", k=41, beams=41)["items"] for _ in range(2)]
            return found, client.get("/metrics").text

    (kept, page), (plain, other) = answers(Limits(context_cache_mb=1)), answers(Limits())
    assert [[item["id"] for item in items] for items in kept] == [[item["id"] for item in items] for items in plain]
    assert 500 in [item["id"] for item in kept[-1]]
    assert "onerec_contexts_found_total 5.0" in page
    assert "onerec_contexts_found_total 0.0" in other
