"""A bundle whose model has pathways: the endpoint scores what the evaluator scores, stored times and wishes included.

What does not fit is refused.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
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
from onerec.serving.batch import BatchSettings, run_batch
from onerec.serving.engine import Engine
from onerec.serving.histories import SqliteHistories, StoredEvent
from onerec.serving.limits import Limits
from onerec.serving.stores import open_stores

PATHWAYS = {
    "static": {},
    "short_term": {},
    "positive": {"column": "rating", "minimum": 4},
    "lifelong": {"num_queries": 2},
    "returns": {"columns": ["rating"]},
}
HISTORY = [103, 139, 100, 100, 117, 121, 109, 104, 105, 131, 128]
KNOWN = {
    "timestamps": list(range(0, 1100, 100)),
    "feedback": {"rating": [5, 4, 1, None, 5, 2, 3, 4, 4, 5, 1]},
}


@pytest.fixture(scope="module")
def make_bundle(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write the bundle of an untrained model with these pathways and this shape."""

    def make(pathways: dict[str, Any], **shape: Any) -> Path:
        run = with_pathways(small_run, pathways, shape)
        return Path(run.write_bundle(tmp_path_factory.mktemp("known") / "bundle"))

    return make


def with_pathways(small_run: Any, pathways: dict[str, Any], shape: dict[str, Any]) -> Any:
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
    fitted = fit_pathways(PathwaySettings.model_validate(pathways), data, vectors)
    torch.manual_seed(0)
    shape = {"d_model": 16, "d_ff": 32, "max_history_items": 4, "bos_reads_context": True, **shape}
    table = small_run.table
    config = OneRecConfig(list(table.codes_per_level), 40, pathways=fitted.spec.model_dump(mode="json"), **shape)
    model = OneRec(config).eval()
    model.set_codes(table.codes_NL, table.content_hash)
    model.encoder.set_pathways(fitted)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return replace(small_run, model=model, data=data)


@pytest.fixture(scope="module")
def bundle_folder(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(PATHWAYS)


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.load(bundle_folder)


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
        (UserEvents(items, wished={"rating": 5.0}), {"wish": {"rating": 5}}),
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
        ({"known": {"feedback": {"timestamp": [1] * 11}}}, "known.feedback: found 'timestamp'"),
        ({"profile": {"gendr": "M"}}, "profile: found 'gendr'.*Did you mean 'gender'"),
        ({"known": {"times": []}}, "known.times"),
        ({"wish": {"ratng": 5}}, "wish: found 'ratng'.*Did you mean 'rating'"),
        ({"wish": {"rating": None}}, "wish.rating: "),
    ],
)
def test_what_does_not_fit_is_refused(client: Any, request_: dict[str, Any], reason: str) -> None:
    response = client.post("/v1/recommend", json={"history": HISTORY, **request_})
    assert response.status_code == 400
    assert re.search(reason, response.json()["reason"])


@pytest.mark.parametrize("told", [{"profile": {"gender": "M"}}, {"wish": {"rating": 5}}, {"known": KNOWN}])
def test_a_model_that_reads_items_alone_refuses_the_rest(small_bundle: Any, told: dict[str, Any]) -> None:
    with TestClient(create_app(Engine(Bundle.load(small_bundle), Limits()), SqliteHistories())) as client:
        response = client.post("/v1/recommend", json={"history": HISTORY, **told})
    assert response.status_code == 400
    assert "reads items alone" in response.json()["reason"]


# ---- wishes --------------------------------------------------------------------------------------------------------


def test_wishes_differ_and_each_of_a_batch_has_its_own(client: Any) -> None:
    requests = [{"history": HISTORY, "k": 10, "wish": {"rating": wish}} for wish in (1, 5, 1e300)]
    requests += [{"history": HISTORY, "k": 10}, {"history": HISTORY, "k": 10, "wish": {}}]
    responses = client.post("/v1/recommend/batch", json={"requests": requests}).json()["responses"]
    low, high, beyond, nothing, empty = ([item["score"] for item in found["items"]] for found in responses)
    assert len({tuple(low), tuple(high), tuple(nothing)}) == 3
    # The highest bucket has no end. Rows of one product may differ by rounding.
    assert (beyond, empty) == (pytest.approx(high, abs=1e-5), pytest.approx(nothing, abs=1e-5))
    assert low != pytest.approx(high, abs=1e-4)
    assert high == pytest.approx(scores(client, **requests[1]), abs=1e-4)


# ---- stored times --------------------------------------------------------------------------------------------------

TIMES = [0.0, 1.5, 1.5, 60.0, 3600.0, 3601.0, 9e4, 1e6, 2e6, 2e6 + 7, 3e6]


@pytest.fixture(scope="module", params=["pathways", "hstu"])
def folder(request: pytest.FixtureRequest, bundle_folder: Path, make_bundle: Callable[..., Path]) -> Path:
    """Bundles whose models read times: as a feature of events, and as biases of attention."""
    if request.param == "pathways":
        return bundle_folder
    return make_bundle({"times": True}, context_block="hstu")


def test_a_stored_history_is_answered_as_the_same_one_sent_with_its_times(folder: Path, state: str | Path) -> None:
    histories, changes = open_stores(state)
    histories.append(StoredEvent("ann", str(item), time) for item, time in zip(HISTORY, TIMES, strict=True))
    histories.append([StoredEvent("ann", "gone", 61.0)])  # its time goes with it
    inline = {"history": HISTORY, "known": {"timestamps": TIMES}}
    with TestClient(create_app(Engine(Bundle.load(folder), Limits()), histories, changes=changes)) as client:
        stored, bare = scores(client, user_id="ann"), scores(client, history=HISTORY)
        assert stored == scores(client, **inline) != bare
        seconds = {"timestamps": [time / 1000 for time in TIMES]}
        assert scores(client, user_id="ann", known=seconds) == scores(client, history=HISTORY, known=seconds) != stored


def test_a_table_of_users_is_answered_by_stored_times_too(folder: Path, tmp_path: Path) -> None:
    users, state = tmp_path / "users.parquet", tmp_path / "state.sqlite"
    pl.DataFrame({"user_id": ["ann"]}).write_parquet(users)
    histories = SqliteHistories(state)
    histories.append(StoredEvent("ann", str(item), time) for item, time in zip(HISTORY, TIMES, strict=True))
    histories.append([StoredEvent("ann", "gone", 61.0)])
    histories.close()
    run_batch(folder, users, tmp_path / "out.parquet", state, BatchSettings())
    found = pl.read_parquet(tmp_path / "out.parquet")
    events = UserEvents(np.array(HISTORY) - 100, np.array(TIMES))
    expected = Bundle.load(folder).recommender().recommend([events], 10, exclude_seen=True)
    np.testing.assert_array_equal(found["scores"][0].to_numpy(), expected.scores_BK[0])
    assert found["history_items_unknown"].to_list() == [1]
