"""The project's errors. The base lives with the lowest floor that raises them, the tokenizer."""

from tokenizer.errors import ArtifactError, ConfigError, DataError, OneRecError, suggest_nearest

__all__ = [
    "ArtifactError",
    "ConfigError",
    "DataError",
    "DataUnavailableError",
    "OneRecError",
    "OverloadedError",
    "ServingError",
    "UnknownUserError",
    "suggest_nearest",
]


class DataUnavailableError(DataError):
    """A data set that cannot be had from here, such as one to download where there is no network."""


class ServingError(OneRecError):
    """A request the server refuses, or a state in which it cannot serve."""


class OverloadedError(ServingError):
    """More than the server can bear at this moment: to be tried again."""


class UnknownUserError(ServingError):
    """A user of whom nothing is stored."""
