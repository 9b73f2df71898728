"""Requests that are answered in the order of the bundle's reward model, and those that cannot be."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from onerec.bundle import Bundle, write_bundle
from onerec.data.settings import FeedbackKind
from onerec.decoding.selection import Selector
from onerec.model.preference.artefact import KIND
from onerec.model.preference.contexts import contexts_of
from onerec.model.preference.judge import PreferenceJudge
from onerec.model.preference.network import PreferenceConfig, PreferenceModel, Scores
from onerec.model.preference.settings import BackboneSettings, WatchTimeSettings
from onerec.model.preference.signals import CHOSEN, Signal
from onerec.serving.access import Keys
from onerec.serving.app import create_app
from onerec.serving.engine import Engine
from onerec.serving.histories import SqliteHistories, StoredEvent
from onerec.serving.limits import Limits
from tests.serving.test_known import with_pathways
from tests.serving.test_live import ADMIN, AUTHORIZED, put
from tokenizer.artifacts import write_manifest

HISTORY = [103, 117, 121, 108]
RATINGS = [5.0, 1.0, None, 4.0]
SIGNALS = [
    Signal(
        name=name, kind=kind, positive_from=start, is_good=True, mean=start, bounds=bounds, pscore_weight=1.0
    ).model_dump(mode="json")
    for name, kind, start, bounds in (
        ("rating", FeedbackKind.RATING, 3.0, (2.0, 3.0, 4.0, 5.0)),
        (CHOSEN, FeedbackKind.BINARY, 1.0, (1.0,)),
    )
]


def make_reward_model(table: Any) -> PreferenceModel:
    """Untrained, far from one another, so that rewards differ."""
    torch.manual_seed(3)
    config = PreferenceConfig(
        num_items=table.num_items,
        feature_sizes=(3,),
        signals=SIGNALS,
        backbone=BackboneSettings(width=8, hidden_width=12, max_history_items=3).model_dump(),
        watch_time=WatchTimeSettings(num_gaussians=3).model_dump(),
        tower_width=6,
        catalogue_hash=table.catalogue_hash,
    )
    model = PreferenceModel(config).eval()
    model.set_features(np.arange(table.num_items)[:, None] % 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model


def write_with_reward(run: Any, folder: Path) -> Bundle:
    """A bundle of a run whose reward stage is done; it selects by the P-Score alone."""
    make_reward_model(run.table).save_pretrained(folder / "reward")
    write_manifest(folder / "reward", KIND, {}, "", {"selection": {"weights": {"pscore": 1.0}, "share": 1.0}})
    parts = (run.model, run.table, run.data, run.results, run.config)
    write_bundle(folder / "bundle", *parts, inputs={}, reward=folder / "reward")
    return Bundle.load(folder / "bundle")


@pytest.fixture(scope="module")
def bundle(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_with_reward(small_run, tmp_path_factory.mktemp("selection"))


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> Iterator[TestClient]:
    histories = SqliteHistories()
    histories.append(StoredEvent("ann", str(item), float(place)) for place, item in enumerate(HISTORY))
    with TestClient(create_app(Engine(bundle, Limits()), histories)) as client:
        yield client


def recommend(client: TestClient, **request: Any) -> dict[str, Any]:
    response = client.post("/v1/recommend", json=request)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def keys(answer: dict[str, Any]) -> list[Any]:
    return [item["id"] for item in answer["items"]]


def scores_of(bundle: Bundle, ids: list[int]) -> Scores:
    """What the model itself says of items for the history without its feedback."""
    assert bundle.selector is not None
    model = bundle.selector.judge.model
    contexts = contexts_of([np.array(HISTORY) - 100], model.signals, model.max_history_items, model.device)
    with torch.inference_mode():
        found: Scores = model(contexts, torch.tensor([ids]) - 100)
    return found


def rewards_of(bundle: Bundle, ids: list[int]) -> list[float]:
    """P-Scores of items."""
    found: list[float] = scores_of(bundle, ids).pscores[0].tolist()
    return found


def test_all_beams_are_put_in_the_order_of_the_reward(client: TestClient, bundle: Bundle) -> None:
    beams = keys(recommend(client, history=HISTORY, k=12, beams=12))
    rewards = dict(zip(beams, rewards_of(bundle, beams), strict=True))
    expected = sorted(beams, key=lambda item: -rewards[item])
    assert expected[:4] != beams[:4]
    assert set(expected[:4]) - set(beams[:4])  # it looks beyond the generator's own list
    answer = recommend(client, history=HISTORY, k=4, beams=12, select=True)
    assert keys(answer) == expected[:4]
    scores = [item["score"] for item in answer["items"]]
    found = np.array([rewards[item] for item in expected])
    np.testing.assert_allclose(scores, ((found - found.mean()) / found.std())[:4], rtol=1e-4)
    assert keys(recommend(client, user_id="ann", k=4, beams=12, select=True)) == expected[:4]


def test_a_request_may_weigh_the_reward_otherwise(client: TestClient, bundle: Bundle) -> None:
    request = {"history": HISTORY, "k": 12, "beams": 12, "select": True}
    beams = keys(recommend(client, history=HISTORY, k=12, beams=12))
    scores = scores_of(bundle, beams)
    rating, pscore = (values_BG[0].numpy() for values_BG in (scores.towers[0].expected_BG, scores.pscores))
    orders = [recommend(client, **request)]
    for weights, rewards in (
        ({"rating": 2.0}, rating),
        ({"rating": -1.0}, -rating),
        ({"rating": 0.5, "pscore": -3.0}, 0.5 * rating - 3 * pscore),
    ):
        orders.append(recommend(client, **request, reward_weights=weights))
        found = [rewards[beams.index(item)] for item in keys(orders[-1])]
        np.testing.assert_allclose(found, np.sort(rewards)[::-1], atol=1e-6 * np.abs(rewards).max())
    assert len({tuple(keys(order)) for order in orders}) == 4
    asked = [request, *({**request, "reward_weights": weights} for weights in ({"rating": 2}, {"rating": -1}))]
    together = client.post("/v1/recommend/batch", json={"requests": asked}).json()["responses"]
    assert [keys(answer) for answer in together] == [keys(answer) for answer in orders[:3]]


def test_fewer_items_than_beams_come_back_as_they_are(client: TestClient, bundle: Bundle) -> None:
    allowed = [105, 110, 130]
    answer = recommend(client, history=HISTORY, k=5, beams=12, select=True, filter={"items": allowed})
    rewards = dict(zip(allowed, rewards_of(bundle, allowed), strict=True))
    assert keys(answer) == sorted(allowed, key=lambda item: -rewards[item])
    assert recommend(client, history=HISTORY, select=True, filter={"items": [103]})["items"] == []


def test_the_reward_model_reads_feedback_though_the_generator_does_not(client: TestClient) -> None:
    request = {"history": HISTORY, "k": 12, "beams": 12, "select": True}
    told = {**request, "known": {"feedback": {"rating": RATINGS}}}
    assert keys(recommend(client, **told)) != keys(recommend(client, **request))
    plain = {**request, "select": False}
    assert recommend(client, **{**told, "select": False}) == recommend(client, **plain)


def test_only_requests_that_ask_for_it_are_selected_for(client: TestClient) -> None:
    requests = [{"history": HISTORY, "k": k, "beams": 12, "select": select} for k in (3, 9) for select in (True, False)]
    answer = client.post("/v1/recommend/batch", json={"requests": requests}).json()
    for request, together in zip(requests, answer["responses"], strict=True):
        assert keys(together) == keys(recommend(client, **request))
    assert keys(answer["responses"][0]) != keys(answer["responses"][1])


def test_beside_a_model_with_pathways_the_reward_model_reads_its_own_columns(small_run: Any, tmp_path: Path) -> None:
    run = with_pathways(small_run, {"short_term": {"features": ["timestamp"]}}, {})
    request = {"history": HISTORY, "k": 12, "beams": 12, "select": True}
    known = {"timestamps": [1, 2, 50, 4000], "feedback": {"rating": RATINGS}}
    with TestClient(create_app(Engine(write_with_reward(run, tmp_path), Limits()), SqliteHistories())) as client:
        bare, told = recommend(client, **request), recommend(client, **request, known=known)
        timed = recommend(client, **request, known={"timestamps": known["timestamps"]})
        response = client.post("/v1/recommend", json={**request, "known": {"feedback": {"liked": [1] * 4}}})
    assert keys(told) != keys(timed)
    assert keys(told) != keys(bare)
    assert "known.feedback: found 'liked', expected what is read (rating)" in response.json()["reason"]


def test_an_item_that_joined_later_may_be_selected(live_bundle: Path, live_items: Any) -> None:
    bundle = Bundle.load(live_bundle)
    judge = PreferenceJudge(make_reward_model(bundle.table), {"pscore": 1.0}, "test")
    engine = Engine(replace(bundle, selector=Selector(judge)), Limits())
    with TestClient(create_app(engine, SqliteHistories(), Keys(admin=(ADMIN,))), headers=AUTHORIZED) as client:
        assert put(client, 500, vector=list(live_items["vector"][7])).status_code == 200
        beams = keys(recommend(client, history=[103, 500], k=40, beams=40))
        assert 500 not in beams
        beams = keys(recommend(client, history=[103], k=40, beams=41))
        selected = recommend(client, history=[103], k=40, beams=41, select=True)
    assert set(keys(selected)) == set(beams)
    assert {item["id"]: item["score"] for item in selected["items"]}[500] == pytest.approx(0.0, abs=1e-5)  # the mean


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"select": True, "exact": True}, "select: found with exact"),
        ({"select": True, "explain": True}, "select: found with explain"),
        ({"select": 1}, "body.select: "),
        ({"reward_weights": {"pscore": 1}}, "reward_weights: found without select"),
        ({"select": True, "reward_weights": {"ratng": 1}}, "reward_weights: no tower 'ratng'. Did you mean 'rating'?"),
        ({"select": True, "reward_weights": {"rating": 1e7}}, "body.reward_weights.rating: "),
        ({"select": True, "wish": {"rating": 5}}, "wish: found for a model that reads items alone"),
        ({"known": {"timestamps": [1, 2, 3, 4]}}, "found for a model that reads items alone"),
        ({"known": {"feedback": {"ratng": RATINGS}}}, "known.feedback: found 'ratng', expected what is read (rating)."),
        ({"known": {"feedback": {CHOSEN: RATINGS}}}, "known.feedback: found 'chosen', expected what is read (rating)."),
        ({"known": {"feedback": {"rating": [5]}}}, "found 1 values of 'rating' for 4 items"),
    ],
)
def test_what_does_not_go_together_is_refused(client: TestClient, request_: dict[str, Any], reason: str) -> None:
    response = client.post("/v1/recommend", json={"history": HISTORY, **request_})
    assert response.status_code == 400
    assert reason in response.json()["reason"]


def test_a_bundle_without_a_reward_model_cannot_select(small_bundle: Path) -> None:
    with TestClient(create_app(Engine(Bundle.load(small_bundle), Limits()), SqliteHistories())) as client:
        response = client.post("/v1/recommend", json={"history": HISTORY, "select": True})
    assert response.status_code == 400
    assert "select: found a bundle without a reward model" in response.json()["reason"]
    assert "--stage reward" in response.json()["reason"]
