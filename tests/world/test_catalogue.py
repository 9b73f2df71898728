"""Items: their titles tell their topics, their vectors lie by topic, popularity follows Zipf."""

import numpy as np

from onerec.world.catalogue import make_catalogue
from onerec.world.settings import WorldSettings
from onerec.world.vocabulary import GROUPS, OPENERS, TOPICS, WORDS, WORDS_PER_TOPIC

SETTINGS = WorldSettings(num_items=2_000, seed=1)
CATALOGUE = make_catalogue(SETTINGS)


def test_every_word_belongs_to_one_topic() -> None:
    words = [word for topic in WORDS for word in topic]
    assert len(set(words)) == len(words) == len(TOPICS) * WORDS_PER_TOPIC
    assert not set(words) & set(OPENERS)
    assert len(GROUPS) == 8


def test_titles_are_three_different_words_of_the_items_topic() -> None:
    for title, topic in zip(CATALOGUE.titles(), CATALOGUE.topic_N, strict=True):
        opener, *words = title.split()
        assert opener in OPENERS
        assert len(set(words)) == 3
        assert set(words) <= set(WORDS[topic])


def test_no_topic_is_empty_in_the_smallest_catalogue() -> None:
    smallest = make_catalogue(SETTINGS.model_copy(update={"num_items": 100}))
    assert len(np.unique(smallest.topic_N)) == len(TOPICS)


def test_items_lie_nearest_to_their_own_topic() -> None:
    np.testing.assert_allclose(np.linalg.norm(CATALOGUE.places_ND, axis=1), 1, rtol=1e-12)
    nearest_N = np.argmax(CATALOGUE.observed_ND @ CATALOGUE.topic_places_TD.T, axis=1)
    assert np.mean(nearest_N == CATALOGUE.topic_N) > 0.8


def test_items_of_shared_words_lie_closer_within_their_topic() -> None:
    first = np.flatnonzero(CATALOGUE.topic_N == 0)
    same_words, other_words = [], []
    for a in first:
        for b in first[first > a]:
            shared = len(set(CATALOGUE.words_NW[a]) & set(CATALOGUE.words_NW[b]))
            similarity = CATALOGUE.places_ND[a] @ CATALOGUE.places_ND[b]
            if shared == 3:
                same_words.append(similarity)
            elif shared == 0:
                other_words.append(similarity)
    assert np.mean(same_words) > np.mean(other_words) + 0.1


def test_popularity_follows_zipf() -> None:
    descending = -np.sort(-CATALOGUE.popularity_N)
    np.testing.assert_allclose(CATALOGUE.popularity_N.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(descending[0] / descending[[1, 9, 999]], np.array([2, 10, 1000]) ** 0.8, rtol=1e-9)
    assert np.corrcoef(CATALOGUE.quality_N, np.log(CATALOGUE.popularity_N))[0, 1] > 0.2


def test_durations_are_log_normal_around_their_topics() -> None:
    log_seconds_N = np.log(CATALOGUE.duration_seconds_N - 3)
    by_topic = [log_seconds_N[CATALOGUE.topic_N == topic] for topic in range(len(TOPICS))]
    within = np.concatenate([seconds - seconds.mean() for seconds in by_topic])
    np.testing.assert_allclose(within.std(), 0.5, rtol=0.05)
    assert log_seconds_N.std() > 1.2 * within.std()
