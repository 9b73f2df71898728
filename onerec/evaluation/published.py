"""Published figures, each with its protocol and where it was read, to set beside ours."""

from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from onerec.evaluation.settings import Protocol

_FILE = Path(__file__).with_name("published.yaml")


class PublishedFigures(BaseModel):
    """One row of a paper's table, comparable with ours under the same protocol only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    metrics: dict[str, float]
    protocol: Protocol
    evidence: Literal["primary", "reproduction", "second_hand"]
    source: str
    note: str = Field("", description="What else differs from our protocol.")


def published_figures(dataset: str, protocol: Protocol) -> list[PublishedFigures]:
    """Rows for a data set under one protocol, none where nothing was collected."""
    rows = [_parse(row) for row in _read_file().get(dataset, [])]
    return [row for row in rows if row.protocol == protocol]


@cache
def _read_file() -> dict[str, list[dict[str, Any]]]:
    tree: dict[str, list[dict[str, Any]]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return tree


def _parse(row: dict[str, Any]) -> PublishedFigures:
    metrics = {key: value for key, value in row.items() if "@" in key}
    facts = {key: value for key, value in row.items() if "@" not in key}
    return PublishedFigures(metrics=metrics, **facts)
