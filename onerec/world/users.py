"""The users of a world: fixed traits, and a taste that drifts from request to request.

A taste is a mixture over a user's favourite topics whose log-weights walk at random around their long-term values (an
autoregressive process of order one), plus a fixed personal part that prefers some items of a topic to others.

U users of the world, B users asked about, F favourite topics a user, T topics, D width of the taste space.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import polars as pl

from onerec.world.catalogue import Catalogue
from onerec.world.randomness import Purpose, fold, normal, purpose_key, uniform
from onerec.world.settings import WorldSettings
from onerec.world.vocabulary import GROUPS, TOPICS

REGIONS = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")
AGE_GROUPS = ("under 18", "18-24", "25-34", "35-49", "50 and over")

_HOME_ADVANTAGE = 1.5  # log-weight by which a region's own topic group leads when favourites are drawn
_FAVOURITE_STEP = 0.5  # log-weight by which each further favourite falls behind in the long term
_PERSONAL_WEIGHT = 0.5
_AGE_STEP_LOG_SECONDS = 0.3
_TYPICAL_LOG_SECONDS = float(np.log(25.0))
_SPREAD_LOG_SECONDS = 0.4


class _Lane(IntEnum):
    REGION = 0
    AGE = 1
    LOG_SECONDS = 2
    ACTIVITY = 3
    FAVOURITE = 4  # and as many more as there are topics


@dataclass(frozen=True)
class Users:
    """Traits of some users that no request changes."""

    users_B: np.ndarray
    region_B: np.ndarray
    age_group_B: np.ndarray
    favourites_BF: np.ndarray  # distinct topics, most liked first
    personal_BD: np.ndarray
    preferred_log_seconds_B: np.ndarray


@dataclass(frozen=True)
class UserState:
    """Some users at one moment: what decides how they meet any item."""

    users: Users
    requests_B: np.ndarray  # requests answered so far
    deviation_BF: np.ndarray  # of the mixture's log-weights from their long-term values
    weights_BF: np.ndarray  # sum to 1
    taste_BD: np.ndarray


def make_users(settings: WorldSettings, catalogue: Catalogue, users_B: np.ndarray) -> Users:
    """The fixed traits of users, by their index."""
    key_B, region_B, age_group_B = _categories(settings, users_B)
    group_of_topic_T = np.array([GROUPS.index(group) for group, _ in TOPICS])
    at_home_BT = group_of_topic_T == region_B[:, None]
    gumbel_BT = -np.log(-np.log(uniform(key_B[:, None], _Lane.FAVOURITE + np.arange(len(TOPICS)))))
    vector_key_B = fold(purpose_key(settings.seed, Purpose.USER_VECTOR), users_B)
    width = settings.vector_width
    return Users(
        users_B=users_B,
        region_B=region_B,
        age_group_B=age_group_B,
        favourites_BF=np.argsort(-(gumbel_BT + _HOME_ADVANTAGE * at_home_BT), axis=1)[:, : settings.num_favourites],
        personal_BD=_PERSONAL_WEIGHT * normal(vector_key_B[:, None], np.arange(width)) / np.sqrt(width),
        preferred_log_seconds_B=_TYPICAL_LOG_SECONDS
        + _AGE_STEP_LOG_SECONDS * (age_group_B - (len(AGE_GROUPS) - 1) / 2)
        + _SPREAD_LOG_SECONDS * normal(key_B, _Lane.LOG_SECONDS),
    )


def initial_state(settings: WorldSettings, catalogue: Catalogue, users: Users) -> UserState:
    """The users before their first request, their deviations drawn from the walk's stationary distribution."""
    spread = settings.drift / np.sqrt(1 - settings.drift_memory**2)
    key_B = fold(purpose_key(settings.seed, Purpose.DRIFT), users.users_B)
    deviation_BF = spread * normal(fold(key_B, 0)[:, None], np.arange(settings.num_favourites))
    return make_state(catalogue, users, np.zeros(len(users.users_B), np.int64), deviation_BF)


def advance(settings: WorldSettings, catalogue: Catalogue, state: UserState) -> UserState:
    """The same users one request later."""
    requests_B = state.requests_B + 1
    key_B = fold(fold(purpose_key(settings.seed, Purpose.DRIFT), state.users.users_B), requests_B)
    step_BF = settings.drift * normal(key_B[:, None], np.arange(settings.num_favourites))
    return make_state(catalogue, state.users, requests_B, settings.drift_memory * state.deviation_BF + step_BF)


def make_state(catalogue: Catalogue, users: Users, requests_B: np.ndarray, deviation_BF: np.ndarray) -> UserState:
    """The state that follows from how far each mixture's log-weights are from their long-term values."""
    long_term_F = -_FAVOURITE_STEP * np.arange(deviation_BF.shape[1])
    exponentials_BF = np.exp(long_term_F + deviation_BF)
    weights_BF = exponentials_BF / exponentials_BF.sum(axis=1, keepdims=True)
    taste_BD = users.personal_BD.copy()
    for favourite_B, weight_B in zip(users.favourites_BF.T, weights_BF.T, strict=True):
        taste_BD += weight_B[:, None] * catalogue.topic_places_TD[favourite_B]
    return UserState(users, requests_B, deviation_BF, weights_BF, taste_BD)


def take(state: UserState, rows: slice | np.ndarray) -> UserState:
    """The state of some of its users."""
    users = Users(**{name: value[rows] for name, value in vars(state.users).items()})
    return UserState(users, **{name: value[rows] for name, value in vars(state).items() if name != "users"})


def events_per_user(settings: WorldSettings) -> np.ndarray:
    """Length of every user's log (U,), at least 1, summing to `num_events`: log-normal activity."""
    key_U = fold(purpose_key(settings.seed, Purpose.USER), np.arange(settings.num_users))
    share_U = np.exp(settings.activity_spread * normal(key_U, _Lane.ACTIVITY))
    extra = settings.num_events - settings.num_users
    ends_U = np.rint(np.cumsum(share_U) / share_U.sum() * extra).astype(np.int64)
    ends_U[-1] = extra
    return 1 + np.diff(ends_U, prepend=0)


def users_table(settings: WorldSettings) -> pl.DataFrame:
    """The users table: user_id, region, age_group."""
    users_U = np.arange(settings.num_users)
    _, region_U, age_group_U = _categories(settings, users_U)
    return pl.DataFrame(
        {
            "user_id": users_U,
            "region": pl.Series(REGIONS).gather(region_U),
            "age_group": pl.Series(AGE_GROUPS).gather(age_group_U),
        }
    )


def _categories(settings: WorldSettings, users_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The key of each user, and the static categories drawn from it."""
    key_B = fold(purpose_key(settings.seed, Purpose.USER), users_B)
    region_B = (uniform(key_B, _Lane.REGION) * len(REGIONS)).astype(np.int64)
    age_group_B = (uniform(key_B, _Lane.AGE) * len(AGE_GROUPS)).astype(np.int64)
    return key_B, region_B, age_group_B
