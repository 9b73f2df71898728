"""A bundle whose model has pathways: the endpoint scores what the evaluator scores; what does not fit is refused."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from fastapi.testclient import TestClient

from onerec.bundle import Bundle
from onerec.data.features import fit_pathways
from onerec.data.histories import Histories
from onerec.data.pathway_settings import PathwaySettings
from onerec.data.pathways import UserEvents
from onerec.data.settings import FeedbackKind
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from onerec.serving.app import create_app
from onerec.serving.engine import Engine
from onerec.serving.histories import SqliteHistories
from onerec.serving.limits import Limits

PATHWAYS = {
    "static": {},
    "short_term": {},
    "positive": {"column": "rating", "minimum": 4},
    "lifelong": {"num_queries": 2},
}
HISTORY = [103, 139, 100, 100, 117, 121, 109, 104, 105, 131, 128]
KNOWN = {
    "timestamps": list(range(0, 1100, 100)),
    "feedback": {"rating": [5, 4, 1, None, 5, 2, 3, 4, 4, 5, 1]},
}


@pytest.fixture(scope="module")
def bundle(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    data = small_run.data
    rng, size = np.random.default_rng(0), 30
    histories = Histories(
        np.array([0, 15, size]),
        rng.integers(0, 40, size).astype(np.int32),
        np.tile(np.arange(15) * 60, 2),
        np.zeros(size, dtype=np.uint8),
        {"rating": rng.integers(1, 6, size).astype(np.float32)},
    )
    schema = data.schema.model_copy(
        update={"user_category_columns": ("gender",), "feedback": {"rating": FeedbackKind.RATING}}
    )
    users = pl.DataFrame({"user_id": [1, 2], "gender": ["F", "M"]})
    data = replace(data, histories=histories, schema=schema, users=users)
    vectors = rng.normal(size=(40, 3)).astype(np.float32)
    fitted = fit_pathways(PathwaySettings.model_validate(PATHWAYS), data, vectors)
    torch.manual_seed(0)
    shape = {"d_model": 16, "d_ff": 32, "max_history_items": 4}
    table = small_run.table
    config = OneRecConfig(list(table.codes_per_level), 40, pathways=fitted.spec.model_dump(mode="json"), **shape)
    model = OneRec(config).eval()
    model.set_codes(table.codes_NL, table.content_hash)
    model.encoder.set_pathways(fitted)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    run = replace(small_run, model=model, data=data)
    return Bundle.load(run.write_bundle(tmp_path_factory.mktemp("known") / "bundle"))


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> Any:
    with TestClient(create_app(Engine(bundle, Limits()), SqliteHistories())) as client:
        yield client


def scores(client: Any, **request: Any) -> list[float]:
    response = client.post("/v1/recommend", json={"k": 10, **request})
    assert response.status_code == 200, response.text
    return [item["score"] for item in response.json()["items"]]


def test_the_endpoint_scores_what_the_evaluator_scores(client: Any, bundle: Bundle) -> None:
    items = np.array(HISTORY) - 100
    ratings = np.array(KNOWN["feedback"]["rating"], dtype=np.float32)  # type: ignore[index]
    for events, request in (
        (
            UserEvents(items, np.array(KNOWN["timestamps"]), {"rating": ratings}, {"gender": "M"}),
            {"known": KNOWN, "profile": {"gender": "M"}},
        ),
        (UserEvents(items, None, {"rating": ratings}), {"known": {"feedback": KNOWN["feedback"]}}),
        (items, {}),
    ):
        expected = bundle.recommender().recommend([events], 10, exclude_seen=True)
        np.testing.assert_array_equal(scores(client, history=HISTORY, **request), expected.scores_BK[0])


def test_what_is_told_changes_the_answer_and_what_is_not_known_is_left_out(client: Any) -> None:
    bare = scores(client, history=HISTORY)
    assert scores(client, history=HISTORY, profile={"gender": "M"}) != bare
    unknown = scores(client, history=HISTORY, profile={"gender": "never seen"})
    assert unknown == scores(client, history=HISTORY, profile={"gender": "nor this"}) != bare
    assert scores(client, history=HISTORY, profile={"gender": None}) == bare
    assert scores(client, history=HISTORY, known={"feedback": {"rating": [None] * len(HISTORY)}}) == bare


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"known": {"timestamps": [1, 2]}}, "known: events: found 2 values of 'timestamps' for 11 items"),
        ({"known": {"timestamps": list(range(11, 0, -1))}}, "timestamps that descend"),
        ({"known": {"feedback": {"rating": [1]}}}, "found 1 values of 'rating' for 11 items"),
        ({"known": {"feedback": {"ratng": [1] * 11}}}, "known.feedback: found 'ratng'.*Did you mean 'rating'"),
        ({"profile": {"gendr": "M"}}, "profile: found 'gendr'.*Did you mean 'gender'"),
        ({"known": {"times": []}}, "known.times"),
    ],
)
def test_what_does_not_fit_is_refused(client: Any, request_: dict[str, Any], reason: str) -> None:
    response = client.post("/v1/recommend", json={"history": HISTORY, **request_})
    assert response.status_code == 400
    assert re.search(reason, response.json()["reason"])


def test_a_model_that_reads_items_alone_refuses_the_rest(small_bundle: Any) -> None:
    with TestClient(create_app(Engine(Bundle.load(small_bundle), Limits()), SqliteHistories())) as client:
        response = client.post("/v1/recommend", json={"history": HISTORY, "profile": {"gender": "M"}})
    assert response.status_code == 400
    assert "reads items alone" in response.json()["reason"]
