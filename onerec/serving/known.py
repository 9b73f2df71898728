"""What a request tells of its user beside the ids of items, as the events that a model with pathways reads.

What is left out counts as missing: an event without a timestamp or without a feedback value, a user without a profile.
Without its feedback no event is a positive one.
"""

from collections.abc import Iterable

import numpy as np

from onerec.data.pathway_settings import PathwaySpec
from onerec.data.pathways import History, UserEvents
from onerec.errors import DataError, ServingError, suggest_nearest
from onerec.serving.schema import RecommendRequest


def known_history(items: np.ndarray, request: RecommendRequest, spec: PathwaySpec | None) -> History:
    """The history of a request with what it tells of the events and of the user.

    Args:
        items: its item indices.
        spec: of the model's pathways; None for one that reads items alone.

    Raises:
        ServingError: columns that the model does not read, not one value an item, or times out of order.
    """
    timestamps, feedback = request.known.timestamps, request.known.feedback
    if timestamps is None and not feedback and not request.profile:
        return items
    if spec is None:
        raise ServingError("known, profile: found for a model that reads items alone. Leave them out.")
    positive = spec.settings.positive
    columns = {number.name for number in spec.numbers} | ({positive.column} if positive is not None else set())
    _require("known.feedback", feedback, columns)
    _require("profile", request.profile, {feature.name for feature in spec.static})
    try:
        return UserEvents(
            items,
            None if timestamps is None else np.asarray(timestamps),
            {name: np.asarray(values, dtype=np.float32) for name, values in feedback.items()},
            request.profile,
        )
    except DataError as error:
        raise ServingError(f"known: {error}") from error


def _require(key: str, names: Iterable[str], columns: set[str]) -> None:
    for name in names:
        if name not in columns:
            raise ServingError(
                f"{key}: found {name!r}, expected what is read ({', '.join(sorted(columns)) or 'nothing'})."
                f"{suggest_nearest(name, columns)}"
            )
