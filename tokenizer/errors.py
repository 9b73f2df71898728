"""Errors written for the person who reads them: what was found, what was expected, what to do."""


class OneRecError(Exception):
    """Base of every error this project raises for its user."""


class ConfigError(OneRecError):
    """A configuration key or value that cannot be used."""


class DataError(OneRecError):
    """Input tables or vectors that break their schema."""


class ArtifactError(OneRecError):
    """A stored artefact that is missing, damaged, or does not belong with another."""
