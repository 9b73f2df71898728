"""The page as text: whole in one file, every control named; `test_browser.py` has it alive."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from onerec.bundle import Bundle
from onerec.serving.app import create_app
from onerec.serving.engine import Engine
from onerec.serving.histories import SqliteHistories
from onerec.serving.limits import Limits

VOID = {"meta", "input", "br", "link", "img"}


@pytest.fixture(scope="module")
def engine(small_bundle: Path) -> Engine:
    return Engine(Bundle.load(small_bundle), Limits())


@pytest.fixture(scope="module")
def page(engine: Engine) -> str:
    with TestClient(create_app(engine, SqliteHistories())) as client:
        response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    return response.text


class Outline(HTMLParser):
    """Ids that are given, named and used, and what stands around each control."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.unnamed: list[str] = []
        self.language = ""
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.language = values.get("lang") or self.language
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.references += [values[name] or "" for name in ("aria-labelledby", "list", "for") if name in values]
        if tag in ("input", "select") and "label" not in self._open and "aria-label" not in values:
            self.unnamed.append(str(values.get("id")))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def test_it_is_one_file_that_asks_nobody_else(page: str) -> None:
    addresses = set(re.findall(r"[a-z]+://[^\s\"'`]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a namespace, fetched by nobody
    assert re.findall(r"<(?:link|img|iframe|object)\b|\bsrc=|@import|url\(", page) == []
    assert "innerHTML" not in page  # titles are shown as text, whatever is in them


def test_every_control_has_a_name_and_every_reference_an_end(page: str) -> None:
    outline = Outline(page)
    assert outline.unnamed == []
    assert outline.language == "en"
    assert len(set(outline.ids)) == len(outline.ids)
    assert set(outline.references) <= set(outline.ids)
    assert set(re.findall(r'byId\("([^"]+)"\)', page)) <= set(outline.ids)


def test_what_its_script_asks_for_is_answered(page: str, engine: Engine) -> None:
    with TestClient(create_app(engine, SqliteHistories())) as client:
        document = client.get("/openapi.json").json()
        known = {re.sub(r"\{[^}]*\}", "*", path) for path in document["paths"]} | {"/"}
        asked = {re.sub(r"\$\{[^}]*\}", "*", path.split("?")[0]) for path in re.findall(r"call\([\"`]([^\"`]+)", page)}
        assert asked
        assert asked <= known
        fields = set(document["components"]["schemas"]["RecommendRequest"]["properties"])
    assert {"user_id", "history", "k", "beams", "exclude", "exclude_seen", "explain", "timings", "filter"} <= fields
