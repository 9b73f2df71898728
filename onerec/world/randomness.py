"""Random numbers as a pure function of what they are for, so that neither order nor blocks can change them.

A key is folded from integers (seed, purpose, user, request, place); a draw is a lane of a key. Folding and drawing are
the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) over numpy's unsigned 64-bit integers.
"""

from enum import IntEnum
from typing import Any

import numpy as np
from scipy.special import ndtri

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


class Purpose(IntEnum):
    """What a family of random numbers decides; a new member never changes the numbers of the others."""

    TOPIC_SPACE = 1
    ITEM = 2
    ITEM_VECTOR = 3
    USER = 4
    USER_VECTOR = 5
    DRIFT = 6
    TIME = 7
    POLICY = 8
    OUTCOME = 9
    SESSION = 10


def fold(key: Any, counter: Any) -> np.ndarray:
    """Keys (uint64) from a key and a counter (non-negative integers), broadcast against each other."""
    with np.errstate(over="ignore"):
        mixed = np.asarray(key, np.uint64) + (np.asarray(counter).astype(np.uint64) + np.uint64(1)) * _GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
        return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def purpose_key(seed: int, purpose: Purpose) -> np.ndarray:
    """The key under which everything for one purpose is drawn."""
    return fold(fold(np.uint64(0), seed), purpose)


def uniform(key: np.ndarray, lane: Any) -> np.ndarray:
    """Float64 strictly between 0 and 1, one for every key and lane."""
    return ((fold(key, lane) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(key: np.ndarray, lane: Any) -> np.ndarray:
    """Float64 from the standard normal distribution, one for every key and lane."""
    return np.asarray(ndtri(uniform(key, lane)))
