"""Typed settings read from one YAML file, with `--set a.b=c` overrides and unknown keys refused."""

import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tokenizer.errors import ConfigError, suggest_nearest

BASE = "base"
"""Key of a YAML file: the file that this one changes."""


class Settings(BaseModel):
    """A frozen group of settings; keys it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


SettingsT = TypeVar("SettingsT", bound=Settings)


def load_settings(
    settings: type[SettingsT], path: Path | str | None = None, overrides: Sequence[str] = ()
) -> SettingsT:
    """Read `path` (YAML; None for the defaults), apply `overrides` like `model.width=256`, and validate.

    Raises:
        ConfigError: unreadable YAML, an override without `=`, an unknown key (with the nearest name), a bad value.
    """
    tree = read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        apply_override(tree, override)
    return build_settings(settings, tree, origin=str(path) if path is not None else "the defaults")


def build_settings(settings: type[SettingsT], tree: dict[str, Any], origin: str) -> SettingsT:
    """Validate a tree of plain values into `settings`; `origin` names its source in errors."""
    try:
        return settings.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(settings, problem) for problem in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, laid over the file that its key `base` names (relative to its folder), if it has one.

    Sections are merged key by key; any other value replaces the base's.

    Raises:
        ConfigError: an unreadable file, invalid YAML, no mapping, a base that is no path or leads back to the file.
    """
    return _read_over_base(path, ())


def _read_over_base(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise ConfigError(f"{path}: its `base` leads back to itself. Take `base` out of one of these files.")
    tree = _read_mapping(path)
    base = tree.pop(BASE, None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: found {base!r}, expected the path of a YAML file.")
    return _merge(_read_over_base(path.parent / base, (*above, path.resolve())), tree)


def _merge(base: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    sections = {
        key: _merge(base[key], value)
        for key, value in tree.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | tree | sections


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}. Give the path of a YAML file.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: found {type(tree).__name__} at the top, expected a mapping of sections.")
    return tree


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in `tree`; the value is read as YAML."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r}: expected section.key=value, for example --set training.epochs=3")
    *sections, leaf = key.strip().split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {section!r} holds a value, not a section.")
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from None


def dump_yaml(settings: Settings) -> str:
    """The settings as YAML that `load_settings` reads back unchanged."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _explain(settings: type[BaseModel], problem: Any) -> str:
    location = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        # A rule about a section speaks of its keys itself; showing the whole section would bury it.
        found = "" if isinstance(problem["input"], dict) else f" (found {problem['input']!r})"
        return f"{location}: {message}{found}" if location else message + found
    *parents, key = problem["loc"]
    known = _known_keys(settings, parents)
    return f"unknown key {location!r}.{suggest_nearest(str(key), known)} Known keys here: {', '.join(sorted(known))}."


def _known_keys(settings: type[BaseModel], parents: Iterable[str | int]) -> list[str]:
    models = [settings]
    for parent in parents:
        fields = [model.model_fields[str(parent)].annotation for model in models if str(parent) in model.model_fields]
        inner = [member for annotation in fields for member in _models_in(annotation)]
        # What is no key is the place in a list, or the member of a union that was tried.
        models = inner or [model for model in models if _is_member(model, parent)] or models
    return [key for model in models for key in model.model_fields]


def _is_member(model: type[BaseModel], name: str | int) -> bool:
    """Whether pydantic calls this member of a union `name`: by its class, or by the value of its discriminator."""
    return model.__name__ == name or any(field.default == name for field in model.model_fields.values())


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Settings classes named anywhere inside a type, such as both members of `A | B` or the item of `list[A]`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]
