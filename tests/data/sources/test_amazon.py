"""Amazon reviews in the official raw forms of 2014, 2018 and 2023, written by hand from their documentation."""

import gzip
import json
from pathlib import Path

import pytest

from onerec.data.settings import DataSettings, FeedbackKind
from onerec.data.sources import find_source
from onerec.data.sources.amazon import EDITIONS, parse_python_line
from onerec.data.tables import ITEM, TIMESTAMP, USER, RawTables
from onerec.errors import ConfigError, DataError

REVIEWS_2014 = (
    '{"reviewerID": "A2SUAM1J3GNN3B", "asin": "0000013714", "reviewerName": "J. McDonald", "helpful": [2, 3], '
    '"reviewText": "I bought this for my \\"husband\\".", "overall": 5.0, "summary": "Heavenly", '
    '"unixReviewTime": 1252800000, "reviewTime": "09 13, 2009"}\n'
    '{"reviewerID": "A1", "asin": "B0002", "helpful": [0, 0], "reviewText": "", "overall": 1.0, "summary": "", '
    '"unixReviewTime": 1252800001, "reviewTime": "09 13, 2009"}\n'
)
METADATA_2014 = (
    "{'asin': '0000013714', 'title': \"Girl's Ballet &amp; Tutu\", 'price': 3.17, 'imUrl': 'http://x/y.jpg', "
    "'related': {'also_bought': ['B00JHONN1S']}, 'salesRank': {'Toys & Games': 211836}, 'brand': 'Coxlures', "
    "'categories': [['Sports & Outdoors', 'Dance'], ['Clothing, Shoes & Jewelry', 'Girls']], "
    "'description': 'It\\'s <b>pink</b>.\\nReally.'}\n"
    "{'asin': 'B0002', 'categories': [['Beauty']]}\n"
    "{'asin': 'B0003', 'title': '', 'brand': '', 'categories': [[]], 'description': u'caf\\xe9'}\n"
)
REVIEWS_2018 = (
    '{"overall": 4.0, "vote": "1,024", "verified": true, "reviewTime": "11 2, 2016", "reviewerID": "A3", '
    '"asin": "B01", "style": {"Size:": " Large"}, "image": ["https://x"], "unixReviewTime": 1478044800}\n'
    '{"overall": 2, "verified": false, "reviewerID": "A4", "asin": "B02", "unixReviewTime": 1478044801}\n'
)
METADATA_2018 = [
    {
        "category": ["Video Games", "PC", "Games &amp; More"],
        "description": ["First part.", "x" * 2000],
        "title": "Reversi <span>Sensory</span> &#39;98",
        "brand": "Piatnik",
        "main_cat": '<img src="https://x/y.gif" alt="Video Games"/>',
        "feature": ["2 players", "For ages 8+"],
        "price": "$1,099.50",
        "asin": "B01",
    },
    {
        "category": [],
        "description": [],
        "title": "var aPageStart = (new Date()).getTime();",
        "price": "$1 - $2",
        "asin": "B02",
    },
    {"category": ["Video Games"], "title": "Reversi again", "asin": "B01"},
]
REVIEWS_2023 = (
    '{"rating": 5.0, "title": "Great", "text": "…", "images": [], "asin": "B0B", "parent_asin": "B0A", '
    '"user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ", "timestamp": 1588687728923, "helpful_vote": 0, '
    '"verified_purchase": true}\n'
)
METADATA_2023 = [
    {
        "main_category": "All Beauty",
        "title": "Howard LC0008 Leather Conditioner",
        "average_rating": 4.8,
        "rating_number": 10,
        "features": [],
        "description": ["Cleans", "and conditions"],
        "price": None,
        "images": [{"thumb": "https://x", "variant": "MAIN"}],
        "store": "Howard Products",
        "categories": ["Beauty", "Skin Care"],
        "details": {"Package Dimensions": "7.1 x 5.5 inches"},
        "parent_asin": "B0A",
        "bought_together": None,
    },
    {"title": "Bundle", "price": "from 14.99", "store": None, "categories": [], "parent_asin": "B0C"},
]


def as_lines(objects: list[dict[str, object]]) -> str:
    return "".join(json.dumps(fields) + "\n" for fields in objects)


FILES = {
    2014: ("Beauty", "reviews_Beauty.json.gz", REVIEWS_2014, "meta_Beauty.json.gz", METADATA_2014),
    2018: ("Video_Games", "Video_Games.json.gz", REVIEWS_2018, "meta_Video_Games.json.gz", as_lines(METADATA_2018)),
    2023: ("All_Beauty", "All_Beauty.jsonl.gz", REVIEWS_2023, "meta_All_Beauty.jsonl.gz", as_lines(METADATA_2023)),
}


def load(folder: Path, year: int, **changed: str) -> RawTables:
    """Write one edition's files, `reviews` or `metadata` replaced where given, and read them."""
    category, reviews_name, reviews, metadata_name, metadata = FILES[year]
    (folder / reviews_name).write_bytes(gzip.compress(changed.get("reviews", reviews).encode()))
    (folder / metadata_name).write_bytes(gzip.compress(changed.get("metadata", metadata).encode()))
    return find_source(f"amazon{year}").load(DataSettings(source=f"amazon{year}", variant=category, path=folder))


def test_2014_with_python_dictionaries_as_metadata(tmp_path: Path) -> None:
    tables = load(tmp_path, 2014)
    assert tables.events.columns == [USER, ITEM, TIMESTAMP, "rating"]
    assert tables.events.rows() == [("A2SUAM1J3GNN3B", "0000013714", 1252800000, 5.0), ("A1", "B0002", 1252800001, 1.0)]
    assert tables.feedback == {"rating": FeedbackKind.RATING}
    assert tables.items.rows(named=True) == [
        {
            ITEM: "0000013714",
            "title": "Girl's Ballet & Tutu",
            "brand": "Coxlures",
            "categories": "Sports & Outdoors > Dance | Clothing, Shoes & Jewelry > Girls",
            "price": 3.17,
            "description": "It's pink . Really.",
        },
        dict.fromkeys((ITEM, "title", "brand", "categories", "price", "description"))
        | {ITEM: "B0002", "categories": "Beauty"},
        dict.fromkeys((ITEM, "title", "brand", "categories", "price", "description"))
        | {ITEM: "B0003", "description": "café"},
    ]
    assert tables.notes == ()
    assert set(tables.provenance.files) == {"reviews_Beauty.json.gz", "meta_Beauty.json.gz"}
    assert tables.file_and_row("items", 2) == ("meta_Beauty.json.gz", 2)


def test_2018_counts_what_it_alters(tmp_path: Path) -> None:
    tables = load(tmp_path, 2018)
    assert tables.events.rows() == [("A3", "B01", 1478044800, 4.0), ("A4", "B02", 1478044801, 2.0)]
    first, second = tables.items.rows(named=True)
    assert first["title"] == "Reversi Sensory '98"
    assert first["categories"] == "Video Games > PC > Games & More"
    assert first["price"] == 1099.5
    assert first["features"] == "2 players For ages 8+"
    assert first["description"] == ("First part. " + "x" * 2000)[:1000]
    assert (second[ITEM], second["title"], second["price"], second["categories"]) == ("B02", None, None, None)
    assert "main_category" not in tables.items.columns  # an image only, so that no row has one
    assert tables.notes == (
        "meta_Video_Games.json.gz: 1 descriptions or feature lists cut to 1000 characters",
        "meta_Video_Games.json.gz: 1 titles that hold a script read as missing",
        "meta_Video_Games.json.gz: 1 metadata lines of an item already read left out",
    )


def test_2023_has_parent_items_stores_and_milliseconds(tmp_path: Path) -> None:
    tables = load(tmp_path, 2023)
    assert tables.events.rows() == [("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B0A", 1588687728.923, 5.0)]
    first, second = tables.items.rows(named=True)
    assert (first["brand"], first["main_category"]) == ("Howard Products", "All Beauty")
    assert first["description"] == "Cleans and conditions"
    assert (second["title"], second["price"], second["brand"]) == ("Bundle", 14.99, None)


@pytest.mark.parametrize("year", [2014, 2018, 2023])
def test_malformed_reviews_and_metadata_are_told_by_line_and_count(tmp_path: Path, year: int) -> None:
    _, reviews_name, reviews, metadata_name, metadata = FILES[year]
    with pytest.raises(
        DataError, match=rf"{reviews_name}: 2 malformed lines, first line {reviews.count(chr(10)) + 1}: "
    ):
        load(tmp_path, year, reviews=reviews + '{"asin": "B1"\n{"asin": "B1", "parent_asin": "B1"}\n')
    line = metadata.count("\n") + 1
    with pytest.raises(
        DataError, match=rf"{metadata_name}: 3 malformed lines, first line {line}: .*line {line + 2}: no "
    ):
        load(tmp_path, year, metadata=metadata + "{'asin': __import__('os')}\n[1\n{\"title\": \"no key\"}\n")


def test_a_python_line_is_read_and_never_run() -> None:
    assert parse_python_line("{'a': [1, None, u'b\\'c', True]}") == {"a": [1, None, "b'c", True]}
    with pytest.raises(ValueError, match="malformed node"):
        parse_python_line("{'a': print(1)}")
    with pytest.raises(ValueError, match="not a Python dictionary"):
        parse_python_line("{'a': ")


def test_unpacked_and_5_core_files_read_the_same_but_not_two_at_once(tmp_path: Path) -> None:
    packed = load(tmp_path, 2014)
    other = tmp_path / "unpacked"
    other.mkdir()
    (other / "reviews_Beauty_5.json").write_text(REVIEWS_2014)
    (other / "meta_Beauty.json").write_text(METADATA_2014)
    settings = DataSettings(source="amazon2014", variant="Beauty", path=other)
    assert find_source("amazon2014").load(settings).events.equals(packed.events)
    (other / "reviews_Beauty.json").write_text(REVIEWS_2014)
    with pytest.raises(DataError, match=r"found reviews_Beauty\.json, reviews_Beauty_5\.json, expected one of them"):
        find_source("amazon2014").load(settings)


def test_a_missing_file_a_cut_file_and_a_missing_category_are_told(tmp_path: Path) -> None:
    load(tmp_path, 2014)
    metadata = tmp_path / "meta_Beauty.json.gz"
    metadata.write_bytes(metadata.read_bytes()[:-20])
    settings = DataSettings(source="amazon2014", variant="Beauty", path=tmp_path)
    source = find_source("amazon2014")
    with pytest.raises(DataError, match=r"meta_Beauty\.json\.gz: damaged or cut short"):
        source.load(settings)
    metadata.unlink()
    with pytest.raises(DataError, match=r"expected also meta_Beauty\.json"):
        source.load(settings)
    with pytest.raises(ConfigError, match=r"data\.variant of amazon2014: found 'beauty'.* Did you mean 'Beauty'\?"):
        source.load(settings.model_copy(update={"variant": "beauty"}))
    with pytest.raises(ConfigError, match="found None, expected one of"):
        source.load(settings.model_copy(update={"variant": None}))


def test_the_numbers_of_categories_and_the_addresses_are_the_published_ones() -> None:
    assert {edition.year: len(edition.names) for edition in EDITIONS} == {2014: 24, 2018: 29, 2023: 34}
    reviews, metadata = EDITIONS[2].release("Books").files
    base = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
    assert reviews.url == f"{base}/review_categories/Books.jsonl.gz"
    assert metadata.url == f"{base}/meta_categories/meta_Books.jsonl.gz"
    assert metadata.name == "meta_Books.jsonl.gz"
