"""What follows when a user is shown an item: the probabilities, and outcomes drawn with them.

A user who clicks watches a share of the video between 0 and 1 with distribution function x ** k, where k grows with
affinity; one who does not is gone after an exponential time (the two modes that EGMN finds in logs of watch time).
Likes and follows need a click. A skip is less than three seconds of watching.

B users, n places of a slate, N items, D width of the taste space. Arrays broadcast, so `Bn` may as well be `BN`.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from scipy.special import expit

from onerec.world.catalogue import Catalogue
from onerec.world.randomness import uniform
from onerec.world.users import UserState

SKIP_SECONDS = 3.0
_GLANCE_SECONDS = 2.0  # mean time before one who does not click is gone


class _Lane(IntEnum):
    CLICK = 0
    WATCH = 1
    LIKE = 2
    FOLLOW = 3


@dataclass(frozen=True)
class Chances:
    """True probabilities and expectations for one exposure of an item to a user."""

    click: np.ndarray
    like: np.ndarray
    follow: np.ndarray
    skip: np.ndarray
    watch_seconds: np.ndarray  # expected, clicks or not
    watch_shape: np.ndarray  # k of the share watched after a click
    duration_seconds: np.ndarray


@dataclass(frozen=True)
class Outcomes:
    """What happened to each place of some slates; all False and 0 where `shown` is False."""

    shown: np.ndarray
    click: np.ndarray
    like: np.ndarray
    follow: np.ndarray
    skip: np.ndarray
    watch_seconds: np.ndarray


def chances_of_slates(catalogue: Catalogue, state: UserState, items_Bn: np.ndarray) -> Chances:
    """Chances of the items in each user's own slate."""
    # Not a matrix product, which may order its sums by the number of rows.
    affinity_Bn = (state.taste_BD[:, None, :] * catalogue.places_ND[items_Bn]).sum(axis=2)
    return _chances(catalogue, state, affinity_Bn, items_Bn)


def chances_of_catalogue(catalogue: Catalogue, state: UserState) -> Chances:
    """Chances of every item for every user (B, N)."""
    return _chances(catalogue, state, state.taste_BD @ catalogue.places_ND.T, np.arange(catalogue.num_items))


def draw_outcomes(chances: Chances, key_Bn: np.ndarray, shown_Bn: np.ndarray) -> Outcomes:
    """Outcomes with these chances, decided by the keys."""
    click = shown_Bn & (uniform(key_Bn, _Lane.CLICK) < chances.click)
    watch_draw = uniform(key_Bn, _Lane.WATCH)
    engaged_seconds = chances.duration_seconds * watch_draw ** (1 / chances.watch_shape)
    glance_seconds = np.minimum(-_GLANCE_SECONDS * np.log(watch_draw), chances.duration_seconds)
    watch_seconds = np.where(shown_Bn, np.where(click, engaged_seconds, glance_seconds), 0.0)
    return Outcomes(
        shown=shown_Bn,
        click=click,
        like=click & (uniform(key_Bn, _Lane.LIKE) * chances.click < chances.like),
        follow=click & (uniform(key_Bn, _Lane.FOLLOW) * chances.click < chances.follow),
        skip=shown_Bn & (watch_seconds < SKIP_SECONDS),
        watch_seconds=watch_seconds,
    )


def _chances(catalogue: Catalogue, state: UserState, affinity: np.ndarray, items: np.ndarray) -> Chances:
    quality = catalogue.quality_N[items]
    seconds = catalogue.duration_seconds_N[items]
    length_mismatch = np.log(seconds) - state.users.preferred_log_seconds_B[:, None]
    click = expit(-1.2 + 4.0 * affinity + 0.5 * quality - 0.6 * length_mismatch**2)
    shape = np.exp(-0.4 + 1.5 * affinity + 0.3 * quality - 0.5 * length_mismatch)
    stays = np.exp(-SKIP_SECONDS / _GLANCE_SECONDS)
    return Chances(
        click=click,
        like=click * expit(-4.0 + 2.0 * affinity + 0.3 * quality),
        follow=click * expit(-6.5 + 2.5 * affinity),
        skip=click * (SKIP_SECONDS / seconds) ** shape + (1 - click) * (1 - stays),
        watch_seconds=click * seconds * shape / (shape + 1)
        + (1 - click) * _GLANCE_SECONDS * -np.expm1(-seconds / _GLANCE_SECONDS),
        watch_shape=shape,
        duration_seconds=np.broadcast_to(seconds, affinity.shape),
    )
