"""Amazon reviews of 2014, 2018 and 2023, a category at a time, out of the official raw files.

Reviews are one JSON object a line. Metadata lines are Python dictionaries in 2014 and JSON afterwards. In 2023 an item
is a `parent_asin`, as its documentation says, and times are milliseconds. The 5-core files of 2014 and 2018
(`NAME_5.json.gz`) have the same form and may be given with --from.
"""

import ast
import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from onerec.data.settings import DataSettings, FeedbackKind
from onerec.data.sources.download import RemoteFile
from onerec.data.sources.reading import (
    BadLine,
    Member,
    line_chunks,
    members,
    read_json_lines,
    refuse_bad_lines,
    require_members,
)
from onerec.data.sources.release import Release, choose_variant, parts_of
from onerec.data.tables import ITEM, TIMESTAMP, USER, Part, RawTables, Source
from onerec.errors import DataError

LICENCE = "no formal licence; released by the McAuley Lab (UC San Diego) for research"
_MAX_TEXT_CHARS = 1000  # of descriptions and feature lists, as in the published preprocessings that quote a limit
_ITEM_SCHEMA = {
    ITEM: pl.String,
    "title": pl.String,
    "brand": pl.String,
    "main_category": pl.String,
    "categories": pl.String,
    "price": pl.Float64,
    "features": pl.String,
    "description": pl.String,
}
_TAG = re.compile(r"</?[a-zA-Z!][^>]*>")
_PRICE = re.compile(r"\s*(?:from\s+)?\$?\s*(\d[\d,]*(?:\.\d+)?)\s*")
_SCRIPT = "getTime"  # marks titles that hold a page's script instead of a title (the 2018 documentation)


@dataclass(frozen=True)
class Edition:
    """How one year's release is laid out. Keys are those of its JSON objects; None where it has no such field."""

    year: int
    page: str
    citation: str
    reviews_url: str
    metadata_url: str
    user: str
    item: str
    rating: str
    time: str
    time_per_second: int
    parse: Callable[[str], Any]  # one line of metadata
    brand: str
    main_category: str | None
    categories: str
    features: str | None
    names: tuple[str, ...]  # the categories published

    @property
    def source(self) -> str:
        """The name that `data.source` takes."""
        return f"amazon{self.year}"

    def release(self, category: str) -> Release:
        """Where one category is published; there are no published checksums."""
        urls = [url.format(category) for url in (self.reviews_url, self.metadata_url)]
        return Release(
            title=f"Amazon reviews {self.year}, {category}",
            page=self.page,
            licence=LICENCE,
            citation=self.citation,
            folder=self.source,
            files=tuple(RemoteFile(url.rpartition("/")[2], url) for url in urls),
        )


def fetch(edition: Edition, settings: DataSettings) -> list[Path]:
    """The reviews and metadata of `data.variant`, downloaded if need be."""
    return edition.release(_category(edition, settings)).locate(settings)


def load(edition: Edition, settings: DataSettings) -> RawTables:
    """Read one category: every review is an event, every metadata line an item.

    Raises:
        ConfigError: no category, or an unknown one.
        DataError: a missing or doubled file, malformed lines; else as `fetch`.
    """
    category = _category(edition, settings)
    paths = fetch(edition, settings)
    reviews = [f"{category}{core}.json{end}" for core in ("", "_5") for end in ("", ".gz", "l", "l.gz")]
    if edition.year == 2014:
        reviews = [f"reviews_{name}" for name in reviews]
    metadata = [f"meta_{category}.json{end}" for end in ("", ".gz", "l", "l.gz")]
    events: dict[str, pl.DataFrame] = {}
    items: dict[str, pl.DataFrame] = {}
    counts: Counter[str] = Counter()
    for path in paths:
        for member in members(path, *reviews, *metadata):
            if member.name in metadata:
                items[member.name] = _read_items(member, edition, counts)
            else:
                events[member.name] = _read_events(member, edition)
    events_file = _only(events, reviews, paths[0])
    items_file = _only(items, metadata, paths[0])
    catalogue = items[items_file].unique(ITEM, keep="first", maintain_order=True)
    counts["metadata lines of an item already read left out"] = items[items_file].height - catalogue.height
    return RawTables(
        events=events[events_file],
        items=catalogue.select(column.name for column in catalogue if column.null_count() < catalogue.height),
        users=None,
        provenance=edition.release(category).provenance(paths, *reviews, *metadata),
        feedback={"rating": FeedbackKind.RATING},
        parts={
            "events": parts_of(events, [events_file]),
            "items": (Part(items_file, catalogue.height),),
        },
        notes=tuple(f"{items_file}: {count:,} {what}" for what, count in counts.items() if count),
    )


def parse_python_line(text: str) -> Any:
    """A 2014 metadata line, which is a Python dictionary; only literals are read, nothing is run.

    Raises:
        ValueError: not a literal.
    """
    try:
        return ast.literal_eval(text)
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"not a Python dictionary ({error})") from None


def _category(edition: Edition, settings: DataSettings) -> str:
    return choose_variant(edition.source, edition.names, settings.variant)


def _only(frames: dict[str, pl.DataFrame], names: list[str], path: Path) -> str:
    """The one file found under one of these names."""
    if not frames:
        require_members(frames, [names[1]], path)
    if len(frames) > 1:
        raise DataError(f"{path}: found {', '.join(sorted(frames))}, expected one of them. Leave the one to read.")
    return next(iter(frames))


def _read_events(member: Member, edition: Edition) -> pl.DataFrame:
    kinds = (pl.String, pl.String, pl.Float32, pl.Int64)
    keys = (edition.user, edition.item, edition.rating, edition.time)
    frame = read_json_lines(member, dict(zip(keys, kinds, strict=True)))
    time = pl.col(edition.time)
    return (
        frame.lazy()
        .select(
            pl.col(edition.user).alias(USER),
            pl.col(edition.item).alias(ITEM),
            (time if edition.time_per_second == 1 else time / edition.time_per_second).alias(TIMESTAMP),
            pl.col(edition.rating).alias("rating"),
        )
        .collect()
    )


def _read_items(member: Member, edition: Edition, counts: Counter[str]) -> pl.DataFrame:
    """The metadata; `counts` gains what was altered on the way."""
    bad_lines: list[BadLine] = []
    frames = [pl.DataFrame(schema=_ITEM_SCHEMA)]
    for first_line, chunk in line_chunks(member):
        rows = list(_parse_items(chunk, first_line, edition, counts, bad_lines))
        frames.append(pl.DataFrame(rows, schema=_ITEM_SCHEMA, orient="row"))
    refuse_bad_lines(member.name, bad_lines)
    return pl.concat(frames, rechunk=False)


def _parse_items(
    chunk: bytes, first_line: int, edition: Edition, counts: Counter[str], bad_lines: list[BadLine]
) -> Iterator[tuple[Any, ...]]:
    for line, record in enumerate(chunk.split(b"\n")[:-1], first_line):
        if not record.strip():
            continue
        try:
            fields = edition.parse(record.decode("utf-8"))
            if not isinstance(fields, dict) or not isinstance(fields.get(edition.item), str):
                raise ValueError(f"no {edition.item}")
        except ValueError as error:  # undecodable text and bad JSON are ValueErrors too
            bad_lines.append(BadLine(line, str(error)))
            continue
        yield _item(fields, edition, counts)


def _item(fields: dict[str, Any], edition: Edition, counts: Counter[str]) -> tuple[Any, ...]:
    title = _clean(fields.get("title"))
    if title is not None and _SCRIPT in title:
        counts["titles that hold a script read as missing"] += 1
        title = None
    return (
        fields[edition.item],
        title,
        _clean(fields.get(edition.brand)),
        _clean(fields.get(edition.main_category)) if edition.main_category else None,
        _category_paths(fields.get(edition.categories)),
        _price(fields.get("price")),
        _cut(_clean(fields.get(edition.features)), counts) if edition.features else None,
        _cut(_clean(fields.get("description")), counts),
    )


def _clean(value: Any) -> str | None:
    """Text (or a list of texts, joined) without entities, tags and runs of blanks; None where nothing is left."""
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value or "")
    return " ".join(_TAG.sub(" ", html.unescape(text)).split()) or None


def _cut(text: str | None, counts: Counter[str]) -> str | None:
    if text is None or len(text) <= _MAX_TEXT_CHARS:
        return text
    counts[f"descriptions or feature lists cut to {_MAX_TEXT_CHARS} characters"] += 1
    return text[:_MAX_TEXT_CHARS]


def _category_paths(value: Any) -> str | None:
    """Levels joined with ` > `, and several paths (2014) with ` | `."""
    paths = value if isinstance(value, list) and value and isinstance(value[0], list) else [value or []]
    joined = (" > ".join(filter(None, map(_clean, path))) for path in paths)
    return " | ".join(filter(None, joined)) or None


def _price(value: Any) -> float | None:
    """Dollars; ranges, dashes and scraps of pages are missing."""
    if isinstance(value, (int, float)):
        return float(value)
    match = _PRICE.fullmatch(value) if isinstance(value, str) else None
    return float(match[1].replace(",", "")) if match else None


_NAMES_2014 = (
    "Amazon_Instant_Video Apps_for_Android Automotive Baby Beauty Books CDs_and_Vinyl "
    "Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics "
    "Grocery_and_Gourmet_Food Health_and_Personal_Care Home_and_Kitchen Kindle_Store Movies_and_TV "
    "Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies Sports_and_Outdoors "
    "Tools_and_Home_Improvement Toys_and_Games Video_Games"
)
_NAMES_2018 = (
    "AMAZON_FASHION All_Beauty Appliances Arts_Crafts_and_Sewing Automotive Books CDs_and_Vinyl "
    "Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards "
    "Grocery_and_Gourmet_Food Home_and_Kitchen Industrial_and_Scientific Kindle_Store Luxury_Beauty "
    "Magazine_Subscriptions Movies_and_TV Musical_Instruments Office_Products Patio_Lawn_and_Garden "
    "Pet_Supplies Prime_Pantry Software Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games "
    "Video_Games"
)
_NAMES_2023 = (
    "All_Beauty Amazon_Fashion Appliances Arts_Crafts_and_Sewing Automotive Baby_Products "
    "Beauty_and_Personal_Care Books CDs_and_Vinyl Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry "
    "Digital_Music Electronics Gift_Cards Grocery_and_Gourmet_Food Handmade_Products Health_and_Household "
    "Health_and_Personal_Care Home_and_Kitchen Industrial_and_Scientific Kindle_Store "
    "Magazine_Subscriptions Movies_and_TV Musical_Instruments Office_Products Patio_Lawn_and_Garden "
    "Pet_Supplies Software Sports_and_Outdoors Subscription_Boxes Tools_and_Home_Improvement "
    "Toys_and_Games Unknown Video_Games"
)
_LAB = "https://mcauleylab.ucsd.edu/public_datasets/data"
_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
EDITIONS = (
    Edition(
        year=2014,
        page="https://jmcauley.ucsd.edu/data/amazon/index_2014.html",
        citation="R. He, J. McAuley. Ups and Downs: Modeling the Visual Evolution of Fashion Trends with One-Class "
        "Collaborative Filtering. WWW 2016; J. McAuley, C. Targett, Q. Shi, A. van den Hengel. Image-Based "
        "Recommendations on Styles and Substitutes. SIGIR 2015",
        reviews_url=f"{_SNAP}/reviews_{{}}.json.gz",
        metadata_url=f"{_SNAP}/meta_{{}}.json.gz",
        user="reviewerID",
        item="asin",
        rating="overall",
        time="unixReviewTime",
        time_per_second=1,
        parse=parse_python_line,
        brand="brand",
        main_category=None,
        categories="categories",
        features=None,
        names=tuple(_NAMES_2014.split()),
    ),
    Edition(
        year=2018,
        page="https://nijianmo.github.io/amazon/",
        citation="J. Ni, J. Li, J. McAuley. Justifying Recommendations using Distantly-Labeled Reviews and "
        "Fine-Grained Aspects. EMNLP 2019",
        reviews_url=f"{_LAB}/amazon_v2/categoryFiles/{{}}.json.gz",
        metadata_url=f"{_LAB}/amazon_v2/metaFiles2/meta_{{}}.json.gz",
        user="reviewerID",
        item="asin",
        rating="overall",
        time="unixReviewTime",
        time_per_second=1,
        parse=json.loads,
        brand="brand",
        main_category="main_cat",
        categories="category",
        features="feature",
        names=tuple(_NAMES_2018.split()),
    ),
    Edition(
        year=2023,
        page="https://amazon-reviews-2023.github.io/",
        citation="Y. Hou, J. Li, Z. He, A. Yan, X. Chen, J. McAuley. Bridging Language and Items for Retrieval and "
        "Recommendation. arXiv:2403.03952, 2024",
        reviews_url=f"{_LAB}/amazon_2023/raw/review_categories/{{}}.jsonl.gz",
        metadata_url=f"{_LAB}/amazon_2023/raw/meta_categories/meta_{{}}.jsonl.gz",
        user="user_id",
        item="parent_asin",
        rating="rating",
        time="timestamp",
        time_per_second=1000,
        parse=json.loads,
        brand="store",
        main_category="main_category",
        categories="categories",
        features="features",
        names=tuple(_NAMES_2023.split()),
    ),
)

SOURCES = tuple(
    Source(
        name=edition.source,
        description=f"Amazon reviews {edition.year}, one category ({edition.page})",
        licence=LICENCE,
        citation=edition.citation,
        load=partial(load, edition),
        fetch=partial(fetch, edition),
        variants=edition.names,
    )
    for edition in EDITIONS
)
