"""What is known of a user beside the ids of items, as the events that a model with pathways and a reward model read.

Of a stored history the times are known; the rest, and the times of an inline one, come with the request. What is left
out counts as missing: an event without a timestamp or without a feedback value, a user without a profile. Without its
feedback no event is a positive one. A model that reads items alone passes stored times over.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from onerec.data.pathway_settings import PathwaySpec
from onerec.data.pathways import UserEvents
from onerec.data.tables import TIMESTAMP
from onerec.errors import DataError, ServingError, suggest_nearest
from onerec.serving.catalogue import Catalogue
from onerec.serving.histories import StoredEvent
from onerec.serving.schema import RecommendRequest


def known_events(stored: Sequence[StoredEvent], catalogue: Catalogue) -> UserEvents:
    """The stored events of a user whose items the catalogue knows; the others are passed over."""
    found = [(catalogue.find(event.item_id), event.timestamp) for event in stored]
    known = [(index, timestamp) for index, timestamp in found if index is not None]
    items, times = zip(*known, strict=True) if known else ((), ())
    return UserEvents(np.array(items, dtype=np.int64), np.array(times, dtype=np.float64))


def known_history(
    events: UserEvents, request: RecommendRequest, spec: PathwaySpec | None, judged: AbstractSet[str] = frozenset()
) -> UserEvents:
    """The events of a request with what it tells of them, of the user, and of what is wished for.

    Args:
        events: its items, with the times that are stored of them; times that the request tells count before these.
        spec: of the model's pathways; None for one that reads items alone.
        judged: feedback columns that the bundle's reward model reads.

    Raises:
        ServingError: columns that neither model reads, not one value an item, or times out of order.
    """
    timestamps, feedback = request.known.timestamps, request.known.feedback
    told = timestamps is not None or bool(request.profile or request.wish)
    if not told and not feedback:
        return events
    if spec is None and (told or not judged):
        raise ServingError("known, profile, wish: found for a model that reads items alone. Leave them out.")
    _require("known.feedback", feedback, judged | _feedback_columns(spec))
    if spec is not None:
        _require("profile", request.profile, {feature.name for feature in spec.static})
        _require("wish", request.wish, {column.name for column in spec.returns})
    try:
        return UserEvents(
            events.items,
            events.timestamps if timestamps is None else np.asarray(timestamps),
            {name: np.asarray(values, dtype=np.float32) for name, values in feedback.items()},
            request.profile,
            request.wish,
        )
    except DataError as error:
        raise ServingError(f"known: {error}") from error


def _feedback_columns(spec: PathwaySpec | None) -> AbstractSet[str]:
    """Those that the pathways read."""
    if spec is None:
        return frozenset()
    positive = spec.settings.positive
    of_events = {number.name for number in spec.numbers} - {TIMESTAMP}
    return of_events if positive is None else of_events | {positive.column}


def _require(key: str, names: Iterable[str], columns: AbstractSet[str]) -> None:
    for name in names:
        if name not in columns:
            raise ServingError(
                f"{key}: found {name!r}, expected what is read ({', '.join(sorted(columns)) or 'nothing'})."
                f"{suggest_nearest(name, columns)}"
            )
