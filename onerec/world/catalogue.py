"""The items of a world: topic, words, duration, quality, popularity and a place in the hidden taste space.

N items, T topics, D width of the taste space.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import polars as pl

from onerec.world.randomness import Purpose, fold, normal, purpose_key, uniform
from onerec.world.settings import WorldSettings
from onerec.world.vocabulary import GROUPS, OPENERS, TOPICS, WORDS, WORDS_PER_TOPIC

_WORDS_A_TITLE = 3
_GROUP_WEIGHT = 0.5  # how far the topics of one group lie together
_WORD_WEIGHT = 0.5  # how far a title's words place an item within its topic
_ITEM_NOISE = 0.35  # what no title tells
_VECTOR_NOISE = 0.1  # error of the vector column against the true place
_SHORTEST_SECONDS = 3.0
_TYPICAL_SECONDS = 25.0


class _Lane(IntEnum):
    TOPIC = 0
    DURATION = 1
    QUALITY = 2
    RANK = 3
    OPENER = 4
    WORD = 5  # and as many more as a title has words


@dataclass(frozen=True)
class Catalogue:
    """What is true of every item, hidden columns included; row k is item index k, and the item's id is k."""

    topic_N: np.ndarray  # index into TOPICS
    words_NW: np.ndarray  # places of the title's words within the topic's words, distinct within a title
    opener_N: np.ndarray
    duration_seconds_N: np.ndarray
    quality_N: np.ndarray  # standard normal
    popularity_N: np.ndarray  # sums to 1
    places_ND: np.ndarray  # unit length
    observed_ND: np.ndarray  # places with noise, as the `vector` column shows them
    topic_places_TD: np.ndarray  # unit length

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.topic_N)

    def titles(self) -> list[str]:
        """The title of every item: an opener, then words of its topic."""
        return [
            " ".join([OPENERS[opener], *(WORDS[topic][word] for word in words)])
            for opener, topic, words in zip(self.opener_N, self.topic_N, self.words_NW, strict=True)
        ]

    def table(self) -> pl.DataFrame:
        """The items table: item_id, title, topic_group, topic, duration_seconds, vector."""
        return pl.DataFrame(
            {
                "item_id": np.arange(self.num_items, dtype=np.int64),
                "title": self.titles(),
                "topic_group": [TOPICS[topic][0] for topic in self.topic_N],
                "topic": [TOPICS[topic][1] for topic in self.topic_N],
                "duration_seconds": self.duration_seconds_N.astype(np.float32),
                "vector": self.observed_ND.astype(np.float32),
            }
        )


def make_catalogue(settings: WorldSettings) -> Catalogue:
    """Draw the items of a world."""
    topics_TD, words_TWD, seconds_T = _topic_space(settings)
    key_N = fold(purpose_key(settings.seed, Purpose.ITEM), np.arange(settings.num_items))
    topic_N = (uniform(key_N, _Lane.TOPIC) * len(TOPICS)).astype(np.int64)
    topic_N[: len(TOPICS)] = np.arange(len(TOPICS))  # no topic is empty
    words_NW = _distinct_words(key_N)
    quality_N = normal(key_N, _Lane.QUALITY)
    noise_key_N = fold(purpose_key(settings.seed, Purpose.ITEM_VECTOR), np.arange(settings.num_items))
    width = settings.vector_width
    noise_N2D = normal(noise_key_N[:, None], np.arange(2 * width)) / np.sqrt(width)
    word_offset_ND = words_TWD[topic_N[:, None], words_NW].sum(axis=1) / np.sqrt(_WORDS_A_TITLE)
    places_ND = _unit(topics_TD[topic_N] + _WORD_WEIGHT * word_offset_ND + _ITEM_NOISE * noise_N2D[:, :width])
    return Catalogue(
        topic_N=topic_N,
        words_NW=words_NW,
        opener_N=(uniform(key_N, _Lane.OPENER) * len(OPENERS)).astype(np.int64),
        duration_seconds_N=_SHORTEST_SECONDS + np.exp(np.log(seconds_T[topic_N]) + 0.5 * normal(key_N, _Lane.DURATION)),
        quality_N=quality_N,
        popularity_N=_zipf(0.5 * quality_N + normal(key_N, _Lane.RANK), settings.zipf_exponent),
        places_ND=places_ND,
        observed_ND=places_ND + _VECTOR_NOISE * noise_N2D[:, width:],
        topic_places_TD=topics_TD,
    )


def _topic_space(settings: WorldSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of the topics (T, D), offsets of their words (T, words, D), and their typical seconds (T,)."""
    width = settings.vector_width
    key = purpose_key(settings.seed, Purpose.TOPIC_SPACE)
    group_of_topic_T = np.array([GROUPS.index(group) for group, _ in TOPICS])
    groups_GD = normal(fold(fold(key, 0), np.arange(len(GROUPS)))[:, None], np.arange(width)) / np.sqrt(width)
    own_TD = normal(fold(fold(key, 1), np.arange(len(TOPICS)))[:, None], np.arange(width)) / np.sqrt(width)
    topics_TD = _unit(np.sqrt(_GROUP_WEIGHT) * groups_GD[group_of_topic_T] + np.sqrt(1 - _GROUP_WEIGHT) * own_TD)
    word_key = fold(fold(key, 2), np.arange(len(TOPICS) * WORDS_PER_TOPIC))
    words_TWD = normal(word_key[:, None], np.arange(width)).reshape(len(TOPICS), WORDS_PER_TOPIC, width)
    seconds_T = _TYPICAL_SECONDS * np.exp(0.5 * normal(fold(key, 3), np.arange(len(TOPICS))))
    return topics_TD, words_TWD / np.sqrt(width), seconds_T


def _distinct_words(key_N: np.ndarray) -> np.ndarray:
    """For every item the places of its title's words: the first few of a random order of the topic's words."""
    return np.argsort(uniform(key_N[:, None], _Lane.WORD + np.arange(WORDS_PER_TOPIC)), axis=1)[:, :_WORDS_A_TITLE]


def _zipf(strength_N: np.ndarray, exponent: float) -> np.ndarray:
    rank_N = np.empty(len(strength_N))
    rank_N[np.argsort(-strength_N, kind="stable")] = np.arange(1, len(strength_N) + 1)
    weights_N = rank_N**-exponent
    return weights_N / weights_N.sum()


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
