"""Features by hand: keys, rows of their own, edges, and what the schema allows."""

import subprocess
import sys
from typing import Any

import numpy as np
import polars as pl
import pytest

from onerec.data.features import (
    MISSING_KEY,
    fit_category,
    fit_edges,
    fit_pathways,
    key_of,
    keys_of,
    principal_components,
    resolve_features,
)
from onerec.data.histories import Histories, Split
from onerec.data.pathway_settings import PathwaySettings
from onerec.data.prepared import PreparedData
from onerec.data.schema import ResolvedSchema
from onerec.data.settings import FeedbackKind
from onerec.errors import ConfigError, DataError


def small_data(**schema_changes: Any) -> PreparedData:
    """Two users; film 3 is seen in the test split only. Ratings 5, 3, 4 are training's."""
    items = pl.DataFrame({"item_id": list("abcd"), "genre": ["war", "war", "love", "noir"], "year": [1, 2, 2, None]})
    users = pl.DataFrame({"user_id": [7, 8], "gender": ["F", None], "age": [30, 40]})
    histories = Histories(
        offsets=np.array([0, 3, 5]),
        items=np.array([0, 1, 3, 2, 3], dtype=np.int32),
        timestamps=np.array([10, 20, 30, 10, 20]),
        splits=np.array([0, 0, Split.TEST, 0, Split.TEST], dtype=np.uint8),
        feedback={"rating": np.array([5, 3, 1, 4, 2], dtype=np.float32)},
    )
    schema = ResolvedSchema(
        text_columns=(),
        category_columns=("genre", "year"),
        user_category_columns=("gender", "age"),
        feedback={"rating": FeedbackKind.RATING},
        has_time=True,
        vector_width=None,
    )
    return PreparedData(items, users, histories, schema.model_copy(update=schema_changes), None)  # type: ignore[arg-type]


def settings(**pathways: Any) -> PathwaySettings:
    return PathwaySettings.model_validate(pathways)


@pytest.mark.parametrize("missing", [None, "", float("nan")])
def test_a_missing_value_has_the_key_zero(missing: Any) -> None:
    assert key_of(missing) == MISSING_KEY


def test_equal_values_of_two_types_have_one_key() -> None:
    assert key_of(24) == key_of(24.0) == key_of("24") != key_of("24.5")
    assert key_of(True) == key_of(1)
    assert key_of(24.5) == key_of("24.5")


def test_keys_are_the_same_in_another_process() -> None:
    program = "from onerec.data.features import key_of; print(key_of('noir'), key_of(-3))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [str(key_of("noir")), str(key_of(-3))]


def test_keys_of_a_column_are_those_of_its_values() -> None:
    for values in (["b", None, "a", "b"], [3, 1, None, 3], [True, False, None], [None, None]):
        assert keys_of(pl.Series(values)).tolist() == [key_of(value) for value in values]


def test_the_most_frequent_values_of_training_have_own_rows() -> None:
    keys = np.array([50, 50, 20, 30, 0, 40])
    counts = np.array([1, 1, 3, 1, 9, 0])  # 50 twice in all; the missing one and the unseen 40 do not count
    spec, own = fit_category("author", keys, counts, own_rows=2, shared_rows=6)
    assert (spec.num_own, spec.num_shared, own.tolist()) == (2, 6, [20, 50])
    spec, own = fit_category("author", keys, counts, own_rows=3, shared_rows=6)
    assert (spec.num_own, spec.num_shared, own.tolist()) == (3, 0, [20, 30, 50])


def test_few_distinct_numbers_are_told_apart() -> None:
    assert fit_edges(np.array([1, 5, 3, 3, np.nan]), num_buckets=3) == (2.0, 4.0)
    assert fit_edges(np.array([0.0, 1.0, 1.0]), num_buckets=2) == (0.5,)
    assert fit_edges(np.array([2.0]), num_buckets=2) == ()


def test_many_numbers_fill_buckets_evenly() -> None:
    values = np.random.default_rng(0).exponential(10, 4000)
    edges = fit_edges(values, num_buckets=8)
    counts = np.bincount(np.searchsorted(edges, values, side="right"))
    assert len(counts) == 8
    assert counts.min() > 490
    assert len(fit_edges(np.concatenate([np.zeros(900), np.arange(100)]), num_buckets=4)) < 3  # ties merge


def test_numbers_never_recorded_have_no_edges() -> None:
    with pytest.raises(DataError, match="no recorded value"):
        fit_edges(np.array([np.nan, np.nan]), 4)


def test_auto_takes_what_the_schema_has() -> None:
    asked = settings(static={}, short_term={}, positive={"column": "rating", "minimum": 4})
    resolved = resolve_features(asked, small_data().schema)
    assert resolved.static is not None
    assert resolved.static.features == ("gender", "age")
    assert resolved.short_term is not None
    assert resolved.short_term.features == ("genre", "year", "rating", "timestamp")
    timeless = resolve_features(asked, small_data(has_time=False, category_columns=()).schema)
    assert timeless.short_term is not None
    assert timeless.short_term.features == ("rating",)


@pytest.mark.parametrize(
    ("pathways", "named"),
    [
        ({"static": {"features": ["gendr"]}}, "static.features.*'gendr'.*Did you mean 'gender'"),
        ({"short_term": {"features": ["genre", "ratng"]}}, "short_term.features.*'ratng'.*Did you mean 'rating'"),
        ({"positive": {"column": "ratings"}}, "positive.column.*'ratings'.*Did you mean 'rating'"),
        ({"lifelong": {"features": ["gender"]}}, "lifelong.features.*'gender'"),
    ],
)
def test_a_feature_that_the_schema_lacks_is_refused_with_the_nearest_name(pathways: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        resolve_features(settings(**pathways), small_data().schema)


def test_time_is_refused_where_only_the_order_is_known() -> None:
    with pytest.raises(ConfigError, match="'timestamp'"):
        resolve_features(settings(short_term={"features": ["timestamp"]}), small_data(has_time=False).schema)


def test_static_without_a_column_of_users_is_refused() -> None:
    with pytest.raises(ConfigError, match="no category column of users"):
        resolve_features(settings(static={}), small_data(user_category_columns=()).schema)


def test_features_are_fitted_on_training_events() -> None:
    asked = settings(static={"features": ["gender", "user_id"]}, short_term={}, positive={"column": "rating"})
    fitted = fit_pathways(asked, small_data(), vectors_NV=None)
    assert [(spec.name, spec.num_own) for spec in fitted.spec.static] == [("gender", 1), ("user_id", 2)]
    assert [(spec.name, spec.num_own) for spec in fitted.spec.categories] == [("genre", 2), ("year", 2)]
    assert fitted.own_categories[0].tolist() == sorted([key_of("war"), key_of("love")])  # "noir" is the test split's
    genres, years = [key_of(genre) for genre in ("war", "war", "love", "noir")], [key_of(1), key_of(2), key_of(2), 0]
    assert fitted.item_keys_NF.T.tolist() == [genres, years]
    assert fitted.profiles == [{"gender": "F", "user_id": 7}, {"gender": None, "user_id": 8}]
    rating, time = fitted.spec.numbers
    assert (rating.name, rating.edges) == ("rating", (3.5, 4.5))  # 1 and 2 are the test split's
    assert (time.name, time.edges[:3], len(time.edges)) == ("timestamp", (1.0, 2.0, 4.0), 31)


def test_a_lifelong_pathway_wants_the_items_vectors() -> None:
    with pytest.raises(ConfigError, match="found vectors: none, expected those of 4 items"):
        fit_pathways(settings(lifelong={}), small_data(), vectors_NV=None)
    with pytest.raises(ConfigError, match="those of 3 items"):
        fit_pathways(settings(lifelong={}), small_data(), vectors_NV=np.zeros((3, 2)))
    assert fit_pathways(settings(lifelong={}), small_data(), np.zeros((4, 2))).spec.vector_width == 2


def test_wide_vectors_keep_the_directions_in_which_they_differ() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(50, 2)) * [9, 4]
    vectors = (plane @ np.linalg.qr(rng.normal(size=(6, 2)))[0].T + 7).astype(np.float32)
    fitted = fit_pathways(settings(lifelong={"vector_width": 2}), small_data(), vectors[:4])
    assert fitted.vectors_NV.shape == (4, 2)
    reduced = principal_components(vectors, 2)
    for matrix in (reduced, vectors):
        distances = ((matrix[:, None] - matrix) ** 2).sum(axis=-1)
        np.testing.assert_allclose(distances, ((plane[:, None] - plane) ** 2).sum(axis=-1), rtol=1e-3, atol=1e-2)
    assert principal_components(vectors, 6) is vectors
