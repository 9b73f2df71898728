"""What is known of users, items and events beside their ids: which columns a pathway reads, and how values are held.

Which features there are comes from the data's schema: its category columns of users and items, its feedback columns,
and the time of an event. A category's value becomes a 64-bit key, whatever its type; frequent ones get a row of their
own in the model (LEAF), the rest hashed ones. A number is put into a bucket, between edges fitted on training events.

Assumed, where our reading of the technical report (arXiv 2506.13695, section 2.2) leaves it open: buckets hold equal
shares of the training events, those of time are powers of two of a second.

Shapes: N items, F item features.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from onerec.data.histories import Histories
from onerec.data.pathway_settings import CategorySpec, NumberSpec, PathwaySettings, PathwaySpec
from onerec.data.prepared import PreparedData
from onerec.data.returns import returns_of
from onerec.data.schema import ResolvedSchema
from onerec.data.tables import TIMESTAMP, USER
from onerec.errors import ConfigError, DataError, suggest_nearest

MISSING_KEY = 0
_LONGEST_SECONDS = 30  # as a power of two: edges of time reach 34 years
_KEY_CACHE = 1 << 16


@dataclass(frozen=True)
class FittedPathways:
    """Everything a new model's pathways are given.

    own_static, own_categories: the keys of each feature's own rows, ascending int64.
    item_keys_NF: int64, the key of every item in every category.
    profiles: user index -> static columns, for those that the pathways read.
    vectors_NV: float32 item vectors to cluster by; width 0 where no pathway clusters.
    """

    spec: PathwaySpec
    own_static: tuple[np.ndarray, ...]
    own_categories: tuple[np.ndarray, ...]
    item_keys_NF: np.ndarray
    profiles: list[dict[str, Any]]
    vectors_NV: np.ndarray


@lru_cache(maxsize=_KEY_CACHE)
def key_of(value: str | int | float | bool | None) -> int:
    """A category value's key, the same in every process; a whole float counts as the integer; 0 where it is missing."""
    if value is None or value == "" or value != value:
        return MISSING_KEY
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    digest = hashlib.blake2b(str(value).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def keys_of(column: pl.Series) -> np.ndarray:
    """The keys (int64) of a column's values, each distinct value looked at once."""
    distinct = column.unique()
    keys = pl.Series([key_of(value) for value in distinct.to_list()], dtype=pl.Int64)
    return column.replace_strict(distinct, keys, return_dtype=pl.Int64).to_numpy()


def fit_pathways(settings: PathwaySettings, data: PreparedData, vectors_NV: np.ndarray | None) -> FittedPathways:
    """Fit the features on the training events.

    Args:
        vectors_NV: the tokenizer's item vectors, which the lifelong pathway clusters by.

    Raises:
        ConfigError: a feature that the schema lacks, or a lifelong pathway without vectors.
    """
    resolved = resolve_features(settings, data.schema)
    training, tables = data.histories.training(), resolved.tables
    category_names, number_names = _names_read(resolved, data.schema)
    static_names = list(resolved.static.features) if resolved.static is not None else []
    event_counts_N = training.item_counts(data.num_items)
    active_U = (np.diff(training.offsets) > 0).astype(np.int64)
    rows = tables.own_rows, tables.shared_rows
    static = [fit_category(name, keys_of(data.users[name]), active_U, *rows) for name in static_names]
    item_keys = [keys_of(data.items[name]) for name in category_names]
    categories = [
        fit_category(name, keys_N, event_counts_N, *rows)
        for name, keys_N in zip(category_names, item_keys, strict=True)
    ]
    vectors_NV = _cluster_vectors(resolved, vectors_NV, data.num_items)
    spec = PathwaySpec(
        settings=resolved,
        static=tuple(category for category, _ in static),
        categories=tuple(category for category, _ in categories),
        numbers=tuple(NumberSpec(name=name, edges=_edges(name, training, tables.num_buckets)) for name in number_names),
        returns=_fit_returns(resolved, training),
        vector_width=vectors_NV.shape[1],
    )
    return FittedPathways(
        spec,
        tuple(own for _, own in static),
        tuple(own for _, own in categories),
        np.stack(item_keys, axis=1) if item_keys else np.zeros((data.num_items, 0), dtype=np.int64),
        user_profiles(data.users, spec),
        vectors_NV,
    )


def user_profiles(users: pl.DataFrame, spec: PathwaySpec) -> list[dict[str, Any]]:
    """The static columns that the pathways read, of each user."""
    names = [feature.name for feature in spec.static]
    return users.select(names).to_dicts() if names else [{}] * users.height


def resolve_features(settings: PathwaySettings, schema: ResolvedSchema) -> PathwaySettings:
    """The same settings with every `auto` as the names that the schema has.

    Raises:
        ConfigError: a name that the schema lacks, with the nearest that it has, or times of data without timestamps.
    """
    of_users = list(schema.user_category_columns)
    of_events = [*schema.category_columns, *schema.feedback, *([TIMESTAMP] if schema.has_time else [])]
    changes: dict[str, Any] = {}
    if settings.static is not None:
        features = _resolved("static.features", settings.static.features, of_users, [*of_users, USER])
        if not features:
            raise ConfigError(
                "model.pathways.static: found no category column of users, expected one. Leave static out, name "
                f"{USER!r} under static.features, or add columns to the users table."
            )
        changes["static"] = settings.static.model_copy(update={"features": features})
    for name in ("short_term", "positive", "lifelong"):
        pathway = getattr(settings, name)
        if pathway is not None:
            features = _resolved(f"{name}.features", pathway.features, of_events, of_events)
            changes[name] = pathway.model_copy(update={"features": features})
    if settings.positive is not None:
        _require("positive.column", [settings.positive.column], list(schema.feedback))
    if settings.returns is not None:
        _require("returns.columns", settings.returns.columns, list(schema.feedback))
    if settings.times and not schema.has_time:
        raise ConfigError(
            "model.pathways.times: found events without timestamps, expected them. Leave times out, or map the column "
            "as data.columns.timestamp."
        )
    return settings.model_copy(update=changes)


def fit_category(
    name: str, keys: np.ndarray, counts: np.ndarray, own_rows: int, shared_rows: int
) -> tuple[CategorySpec, np.ndarray]:
    """Which values have rows of their own: the most frequent `own_rows` of those that training has seen.

    Args:
        keys, counts: of each user or item, its value's key and its number of training events.

    Returns:
        the specification and the keys with own rows, ascending.
    """
    seen = (keys != MISSING_KEY) & (counts > 0)
    distinct, place = np.unique(keys[seen], return_inverse=True)
    totals = np.bincount(place, weights=counts[seen], minlength=len(distinct))
    own = np.sort(distinct[np.lexsort((distinct, -totals))[:own_rows]])
    num_shared = shared_rows if len(distinct) > own_rows else 0
    return CategorySpec(name=name, num_own=len(own), num_shared=num_shared), own


def principal_components(vectors_NV: np.ndarray, width: int) -> np.ndarray:
    """Vectors in the `width` directions in which they differ most, about their mean; as they are where no wider."""
    if vectors_NV.shape[1] <= width:
        return vectors_NV
    centred_NV = vectors_NV - vectors_NV.mean(axis=0)
    _, directions_VV = np.linalg.eigh(centred_NV.T @ centred_NV)  # ascending
    return centred_NV @ directions_VV[:, ::-1][:, :width]


def fit_edges(values: np.ndarray, num_buckets: int) -> tuple[float, ...]:
    """Edges between the distinct values where they are few, else edges that put as many values into each bucket.

    Raises:
        DataError: no value is known.
    """
    known = values[~np.isnan(values)].astype(np.float64)
    if not len(known):
        raise DataError("found no recorded value in the training events, expected some to fit buckets on")
    distinct = np.unique(known)
    if len(distinct) <= num_buckets:
        return tuple(((distinct[1:] + distinct[:-1]) / 2).tolist())
    return tuple(np.unique(np.quantile(known, np.arange(1, num_buckets) / num_buckets)).tolist())


def _names_read(settings: PathwaySettings, schema: ResolvedSchema) -> tuple[list[str], list[str]]:
    """The category and the number columns that some pathway of events reads, each once."""
    pathways = (settings.short_term, settings.positive, settings.lifelong)
    names = list(dict.fromkeys(name for pathway in pathways if pathway is not None for name in pathway.features))
    categories = [name for name in names if name in schema.category_columns]
    return categories, [name for name in names if name not in schema.category_columns]


def _edges(name: str, training: Histories, num_buckets: int) -> tuple[float, ...]:
    if name == TIMESTAMP:
        return tuple(2.0**power for power in range(_LONGEST_SECONDS + 1))
    try:
        return fit_edges(np.asarray(training.feedback[name]), num_buckets)
    except DataError as error:
        raise DataError(f"model.pathways: feature {name!r}: {error}. Leave it out.") from None


def _fit_returns(settings: PathwaySettings, training: Histories) -> tuple[NumberSpec, ...]:
    """Buckets of the returns that can be wished for.

    Raises:
        DataError: a column of which nothing is recorded, or one value alone, so that there is nothing to wish for.
    """
    wanted = settings.returns
    if wanted is None:
        return ()
    specs = []
    for name, returns_N in zip(wanted.columns, returns_of(training, wanted.columns, wanted.horizon).T, strict=True):
        known = returns_N[~np.isnan(returns_N)]
        edges = tuple(edge for edge in fit_edges(known, wanted.num_buckets) if edge > known.min()) if len(known) else ()
        if not edges:
            found = f"the value {known[0]:g} everywhere" if len(known) else "nothing recorded"
            raise DataError(
                f"model.pathways.returns: found {found} in {name!r}, expected returns that differ. Leave the column "
                "out, or train on events that were not filtered by it (data.min_feedback)."
            )
        specs.append(NumberSpec(name=name, edges=edges))
    return tuple(specs)


def _cluster_vectors(settings: PathwaySettings, vectors_NV: np.ndarray | None, num_items: int) -> np.ndarray:
    if settings.lifelong is None:
        return np.zeros((num_items, 0), dtype=np.float32)
    if vectors_NV is None or len(vectors_NV) != num_items:
        found = "none" if vectors_NV is None else f"those of {len(vectors_NV)} items"
        raise ConfigError(f"model.pathways.lifelong: found vectors: {found}, expected those of {num_items} items.")
    return principal_components(np.array(vectors_NV, dtype=np.float32), settings.lifelong.vector_width)


def _resolved(key: str, features: Sequence[str] | str, automatic: list[str], known: list[str]) -> tuple[str, ...]:
    if isinstance(features, str):
        return tuple(automatic)
    _require(key, features, known)
    return tuple(features)


def _require(key: str, names: Sequence[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(
                f"model.pathways.{key}: found {name!r}, expected a column of the schema "
                f"({', '.join(known) or 'none'}).{suggest_nearest(name, known)}"
            )
