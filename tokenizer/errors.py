"""Errors written for the person who reads them: what was found, what was expected, what to do."""

import difflib
from collections.abc import Iterable


def suggest_nearest(name: str, known: Iterable[str], cutoff: float = 0.0) -> str:
    """A question to add to an error: the known name nearest to one that is not known; empty where none is near.

    Args:
        cutoff: least similarity, from 0 to 1.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


class OneRecError(Exception):
    """Base of every error this project raises for its user."""


class ConfigError(OneRecError):
    """A configuration key or value that cannot be used."""


class DataError(OneRecError):
    """Input tables or vectors that break their schema."""


class ArtifactError(OneRecError):
    """A stored artefact that is missing, damaged, or does not belong with another."""
