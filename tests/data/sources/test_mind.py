"""MIND in the official form of its zips, written by hand from the published description."""

import zipfile
from pathlib import Path

import pytest

from onerec.data.settings import DataSettings, FeedbackKind
from onerec.data.sources.mind import load, release
from onerec.data.tables import ITEM, POSITION, TIMESTAMP, USER
from onerec.errors import DataError

TRAIN = {
    "behaviors.tsv": "1\tU13740\t11/11/2019 9:05:58 AM\tN55189 N42782\tN55689-1 N35729-0\n"
    "2\tU91836\t11/12/2019 6:11:30 PM\t\tN35729-0 N55689-0\n"
    "3\tU13740\t11/9/2019 12:00:01 AM\tN55189\tN42782-1\n"
    "4\tU73700\t11/14/2019 7:01:48 AM\tN42782\t\n",
    "news.tsv": 'N55189\tlifestyle\tlifestyleroyals\tThe "Brands" Queen Elizabeth Swears By\tShop the notebooks.\t'
    "https://assets.msn.com/labs/mind/AAGH0ET.html\t[]\t[]\n"
    'N42782\tsports\tbaseball_mlb\tYankees\' win\t\thttps://x\t[{"Label": "New York, Yankees"}]\t[]\n'
    "N35729\tnews\tnewsus\tPorsche launches\tAnd more.\thttps://x\t[]\t[]\n",
}
DEV = {
    "behaviors.tsv": "1\tU80234\t11/15/2019 12:37:50 PM\tN55189\tN55689-0 N35729-1\n",
    "news.tsv": "N35729\tnews\tnewsus\tPorsche launches\tAnd more.\thttps://x\t[]\t[]\n"
    "N55689\tsports\tfootball_nfl\tCharles Rogers\tDies.\thttps://x\t\t\n",
}


def write_zips(folder: Path, train: dict[str, str], dev: dict[str, str]) -> Path:
    for name, files in (("MINDsmall_train.zip", train), ("MINDsmall_dev.zip", dev)):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for file, text in files.items():
                archive.writestr(file, text)
    return folder


def test_every_news_shown_is_an_event_with_its_click(tmp_path: Path) -> None:
    tables = load(DataSettings(source="mind", path=write_zips(tmp_path, TRAIN, DEV)))
    assert tables.events.columns == [USER, ITEM, TIMESTAMP, "is_click"]
    assert tables.events.rows() == [
        ("U13740", "N55689", 1573463158, 1),
        ("U13740", "N35729", 1573463158, 0),
        ("U91836", "N35729", 1573582290, 0),
        ("U91836", "N55689", 1573582290, 0),
        ("U13740", "N42782", 1573257601, 1),
        ("U80234", "N55689", 1573821470, 0),
        ("U80234", "N35729", 1573821470, 1),
    ]
    assert tables.feedback == {"is_click": FeedbackKind.BINARY}
    assert tables.items.rows() == [
        ("N55189", 'The "Brands" Queen Elizabeth Swears By', "Shop the notebooks.", "lifestyle", "lifestyleroyals"),
        ("N42782", "Yankees' win", None, "sports", "baseball_mlb"),
        ("N35729", "Porsche launches", "And more.", "news", "newsus"),
        ("N55689", "Charles Rogers", "Dies.", "sports", "football_nfl"),
    ]
    assert tables.notes == (
        "news.tsv: 1 news that stand in both zips read once",
        "behaviors.tsv: 1 impressions that show nothing make no events",
    )
    assert set(tables.provenance.files) == {"MINDsmall_train.zip", "MINDsmall_dev.zip"}


def test_history_goes_before_what_was_shown_and_leaves_only_the_order(tmp_path: Path) -> None:
    settings = DataSettings(source="mind", path=write_zips(tmp_path, TRAIN, DEV), include_history=True)
    events = load(settings).events
    assert TIMESTAMP not in events.columns
    of_user = events.filter(events[USER] == "U13740").sort(POSITION)
    # The earliest impression (9 November) has the history N55189; the later one's history is not taken again.
    assert of_user.select(POSITION, ITEM, "is_click").rows() == [
        (0, "N55189", 1),
        (1, "N42782", 1),
        (2, "N55689", 1),
        (3, "N35729", 0),
    ]
    assert events.filter(events[USER] == "U73700").select(ITEM, POSITION).rows() == [("N42782", 0)]
    assert events.filter(events[USER] == "U91836")[POSITION].to_list() == [0, 1]


def test_unpacked_folders_read_the_same(tmp_path: Path) -> None:
    packed = load(DataSettings(source="mind", path=write_zips(tmp_path, TRAIN, DEV)))
    for name in ("train", "dev"):
        with zipfile.ZipFile(tmp_path / f"MINDsmall_{name}.zip") as archive:
            archive.extractall(tmp_path / "unpacked" / f"MINDsmall_{name}")
    unpacked = load(DataSettings(source="mind", path=tmp_path / "unpacked"))
    assert set(unpacked.events.rows()) == set(packed.events.rows())
    assert set(unpacked.items.rows()) == set(packed.items.rows())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("5\tU1\t2019-11-11\t\tN1-1\n", r"line 5: time is '2019-11-11', expected MM/DD/YYYY"),
        ("5\tU1\t11/11/2019 9:05:58 AM\t\tN1 N2\n", r"line 5: shown is 'N1 N2', expected news-0 or news-1"),
        ("5\tU1\t11/11/2019 9:05:58 AM\n", r"line 5: found 3 fields, expected 5"),
        ("5\t\t11/11/2019 9:05:58 AM\t\tN1-1\n", r"line 5: user_id is empty"),
    ],
)
def test_malformed_impressions_are_told(tmp_path: Path, line: str, reason: str) -> None:
    train = TRAIN | {"behaviors.tsv": TRAIN["behaviors.tsv"] + line}
    with pytest.raises(DataError, match=rf"behaviors\.tsv: 1 malformed lines, first {reason}"):
        load(DataSettings(source="mind", path=write_zips(tmp_path, train, DEV)))


def test_missing_news_are_told(tmp_path: Path) -> None:
    train, dev = ({"behaviors.tsv": files["behaviors.tsv"]} for files in (TRAIN, DEV))
    with pytest.raises(DataError, match=r"expected also news\.tsv"):
        load(DataSettings(source="mind", path=write_zips(tmp_path, train, dev)))


def test_a_release_is_two_zips() -> None:
    assert [file.name for file in release("large").files] == ["MINDlarge_train.zip", "MINDlarge_dev.zip"]
