"""The config that a run's folder holds, compared with another one."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from onerec.config import RunConfig
from onerec.errors import ArtifactError, ConfigError

_NUM_SHOWN = 5


def require_same_config(stored: Path, config: RunConfig) -> None:
    """Refuse a run's folder that holds a run of another config.

    Raises:
        ConfigError: they differ; the message says where.
        ArtifactError: the file is no config.
    """
    differences = describe_differences(_read(stored), config.model_dump(mode="json"))
    if differences:
        raise ConfigError(
            f"{stored.parent} holds a run of another config ({differences}). "
            "Choose another name (--set name=…) or delete the folder."
        )


def describe_differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """The first keys in which two trees of settings differ, each with both values; empty where they are the same."""
    found_leaves, expected_leaves = _leaves(found), _leaves(expected)
    differences = [
        f"{key}: found {_shown(found_leaves.get(key))}, expected {_shown(expected_leaves.get(key))}"
        for key in sorted(found_leaves.keys() | expected_leaves.keys())
        if found_leaves.get(key) != expected_leaves.get(key)
    ]
    return "; ".join(differences[:_NUM_SHOWN]) + ("; …" if len(differences) > _NUM_SHOWN else "")


def _read(file: Path) -> dict[str, Any]:
    """A run's config.yaml; keys that came in after it was written count as their defaults."""
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise ArtifactError(f"{file}: damaged, expected the config of a run. Delete the folder or choose a new name.")
    with suppress(ValidationError, ConfigError):
        found = RunConfig.model_validate(found).model_dump(mode="json")
    return found


def _leaves(tree: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in _leaves(branch, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _shown(value: object) -> str:
    return "nothing" if value is None else repr(value)
