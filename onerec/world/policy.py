"""The policy that wrote the log: by popularity, at random, or by topic taste, with the propensity of every exposure.

It knows a user's mixture over topics but nothing of the personal part, of quality or of duration, which leaves a better
policy something to find. Each place of a slate is drawn on its own (an item may come twice), so propensities are exact.

B users, n places of a slate, F favourite topics, N items, T topics.
"""

from enum import IntEnum

import numpy as np

from onerec.world.catalogue import Catalogue
from onerec.world.randomness import uniform
from onerec.world.settings import WorldSettings
from onerec.world.users import UserState
from onerec.world.vocabulary import TOPICS


class _Lane(IntEnum):
    KIND = 0
    FAVOURITE = 1
    ITEM = 2


class LoggingPolicy:
    """Draws slates and states with which probability each item came."""

    def __init__(self, settings: WorldSettings, catalogue: Catalogue) -> None:
        self._settings = settings
        self._popularity_N = catalogue.popularity_N
        self._topic_N = catalogue.topic_N
        self._by_topic_N = np.argsort(catalogue.topic_N, kind="stable")
        self._cumulative_N = np.cumsum(self._popularity_N[self._by_topic_N])
        ends_T = np.cumsum(np.bincount(catalogue.topic_N, minlength=len(TOPICS)))
        self._last_T = ends_T - 1
        self._high_T = self._cumulative_N[self._last_T]
        self._low_T = np.concatenate([[0.0], self._high_T[:-1]])

    def draw_slates(self, state: UserState, key_Bn: np.ndarray) -> np.ndarray:
        """Item indices (B, n), decided by the keys."""
        kind_Bn = uniform(key_Bn, _Lane.KIND)
        draw_Bn = uniform(key_Bn, _Lane.ITEM)
        topic_Bn = self._draw_topics(state, uniform(key_Bn, _Lane.FAVOURITE))
        mass_Bn = self._low_T[topic_Bn] + draw_Bn * (self._high_T - self._low_T)[topic_Bn]
        # The next topic's first item is what rounding at a topic's upper end would give.
        by_taste_Bn = np.minimum(np.searchsorted(self._cumulative_N, mass_Bn, "right"), self._last_T[topic_Bn])
        by_popularity_Bn = np.searchsorted(self._cumulative_N, draw_Bn * self._cumulative_N[-1], "right")
        at_random_Bn = (draw_Bn * len(self._popularity_N)).astype(np.int64)
        popularity_share, random_share = self._settings.popularity_share, self._settings.random_share
        return np.where(
            kind_Bn < popularity_share,
            self._by_topic_N[np.minimum(by_popularity_Bn, len(self._by_topic_N) - 1)],
            np.where(kind_Bn < popularity_share + random_share, at_random_Bn, self._by_topic_N[by_taste_Bn]),
        )

    def propensities(self, state: UserState, items_Bn: np.ndarray) -> np.ndarray:
        """Probability (B, n) with which this policy puts each item at a place of the user's slate."""
        topic_Bn = self._topic_N[items_Bn]
        weight_Bn = np.zeros(items_Bn.shape)
        for favourite_B, weight_B in zip(state.users.favourites_BF.T, state.weights_BF.T, strict=True):
            weight_Bn += np.where(topic_Bn == favourite_B[:, None], weight_B[:, None], 0.0)
        by_taste_Bn = self._settings.taste_share * weight_Bn / (self._high_T - self._low_T)[topic_Bn]
        at_random = self._settings.random_share / len(self._popularity_N)
        return self._popularity_N[items_Bn] * (self._settings.popularity_share + by_taste_Bn) + at_random

    @staticmethod
    def _draw_topics(state: UserState, draw_Bn: np.ndarray) -> np.ndarray:
        """A favourite topic a place, by the weights of the mixture."""
        upper_BF = np.cumsum(state.weights_BF, axis=1)[:, :-1]
        place_Bn = (draw_Bn[:, :, None] >= upper_BF[:, None, :]).sum(axis=2)
        return np.take_along_axis(state.users.favourites_BF, place_Bn, axis=1)
