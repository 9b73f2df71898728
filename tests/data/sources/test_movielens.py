"""MovieLens in the four official forms, written by hand from the READMEs."""

import zipfile
from pathlib import Path

import pytest

from onerec.data.settings import DataSettings, FeedbackKind
from onerec.data.sources.movielens import VARIANTS, fetch, load, release
from onerec.data.tables import ITEM, TIMESTAMP, USER
from onerec.errors import ConfigError, DataError

NO_GENRES = "0|" * 18
U_ITEM = (
    "1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy%20Story%20(1995)|"
    "0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    "267|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    f"543|Misérables, Les (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Mis%E9rables|{NO_GENRES}0\n"
)
FILES = {
    "100k": {
        "ml-100k/u.data": "196\t1\t3\t881250949\n22\t543\t1\t878887116\n196\t267\t5\t881250950\n",
        "ml-100k/u.item": U_ITEM,
        "ml-100k/u.user": "22|25|M|writer|40206\n196|49|M|writer|55105\n",
        "ml-100k/u.genre": "unknown|0\nAction|1\n\n",
    },
    "1m": {
        "ml-1m/ratings.dat": "1::1193::5::978300760\n2::661::3::978302109\n",
        "ml-1m/movies.dat": "661::Misérables, Les (1995)::Drama|Musical\n"
        "1193::One Flew: Over (the) Nest (1975)::Drama\n",
        "ml-1m/users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n",
    },
    "20m": {
        "ml-20m/ratings.csv": "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,11,0.5,1112484676\n",
        "ml-20m/movies.csv": "movieId,title,genres\n2,Jumanji (1995),Adventure|Children|Fantasy\n"
        '11,"American President, The (1995)",Comedy|Drama|Romance\n'
        '31,"He Said ""Hi"", She (1975-1979)",(no genres listed)\n',
        "ml-20m/tags.csv": "userId,movieId,tag,timestamp\n",
    },
}
FILES["32m"] = {name.replace("20m", "32m"): text for name, text in FILES["20m"].items()}


def write_zip(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "official.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text.encode("latin-1" if name.endswith(("u.item", ".dat")) else "utf-8"))
    return path


def settings(path: Path, variant: str) -> DataSettings:
    return DataSettings(source="movielens", variant=variant, path=path)


def test_100k_with_latin_1_titles_genre_flags_and_an_unknown_film(tmp_path: Path) -> None:
    tables = load(settings(write_zip(tmp_path, FILES["100k"]), "100k"))
    assert tables.events.columns == [USER, ITEM, "rating", TIMESTAMP]
    assert tables.events.rows() == [(196, 1, 3.0, 881250949), (22, 543, 1.0, 878887116), (196, 267, 5.0, 881250950)]
    assert tables.items.rows() == [
        (1, "Toy Story", 1995, "Animation|Children's|Comedy"),
        (267, "unknown", None, "unknown"),
        (543, "Misérables, Les", 1995, None),
    ]
    assert tables.users is not None
    assert tables.users.row(1, named=True) == {
        USER: 196,
        "age": 49,
        "gender": "M",
        "occupation": "writer",
        "zip_code": "55105",
    }
    assert tables.feedback == {"rating": FeedbackKind.RATING}
    assert tables.file_and_row("events", 2) == ("u.data", 2)
    assert tables.provenance.source == "MovieLens 100K"
    assert list(tables.provenance.files) == ["official.zip"]


def test_1m_with_double_colons(tmp_path: Path) -> None:
    tables = load(settings(write_zip(tmp_path, FILES["1m"]), "1m"))
    assert tables.events.rows() == [(1, 1193, 5.0, 978300760), (2, 661, 3.0, 978302109)]
    assert tables.items.rows() == [
        (661, "Misérables, Les", 1995, "Drama|Musical"),
        (1193, "One Flew: Over (the) Nest", 1975, "Drama"),
    ]
    assert tables.users is not None
    assert tables.users.rows() == [(1, "F", 1, 10, "48067"), (2, "M", 56, 16, "70072")]


@pytest.mark.parametrize("variant", ["20m", "32m"])
def test_20m_and_32m_with_commas_and_quotes_in_titles(tmp_path: Path, variant: str) -> None:
    tables = load(settings(write_zip(tmp_path, FILES[variant]), variant))
    assert tables.events.rows() == [(1, 2, 3.5, 1112486027), (1, 11, 0.5, 1112484676)]
    assert tables.items.rows() == [
        (2, "Jumanji", 1995, "Adventure|Children|Fantasy"),
        (11, "American President, The", 1995, "Comedy|Drama|Romance"),
        (31, 'He Said "Hi", She (1975-1979)', None, None),
    ]
    assert tables.users is None


def test_an_unpacked_folder_reads_the_same(tmp_path: Path) -> None:
    packed = load(settings(write_zip(tmp_path, FILES["1m"]), "1m"))
    with zipfile.ZipFile(tmp_path / "official.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    unpacked = load(settings(tmp_path / "unpacked", "1m"))
    assert unpacked.events.equals(packed.events)
    assert unpacked.items.equals(packed.items)
    assert set(unpacked.provenance.files) == {"ratings.dat", "movies.dat", "users.dat"}


def test_a_malformed_line_and_a_missing_file_are_told(tmp_path: Path) -> None:
    broken = FILES["100k"] | {"ml-100k/u.data": "196\t1\t3\t881250949\n22\t543\t1\n\n7\t1\tgood\t9\n"}
    with pytest.raises(
        DataError, match=r"u\.data: 2 malformed lines, first line 2: found 3 fields, expected 4; line 4"
    ):
        load(settings(write_zip(tmp_path, broken), "100k"))
    partial = {name: text for name, text in FILES["100k"].items() if not name.endswith("u.item")}
    with pytest.raises(DataError, match=r"found u\.data, u\.user, expected also u\.item"):
        load(settings(write_zip(tmp_path, partial), "100k"))


def test_the_zip_of_another_variant_and_an_unknown_variant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected also ratings\.dat"):
        load(settings(write_zip(tmp_path, FILES["100k"]), "1m"))
    with pytest.raises(ConfigError, match=r"data\.variant of movielens: found '25m'"):
        fetch(DataSettings(source="movielens", variant="25m"))


def test_addresses_and_checksums_are_those_of_grouplens() -> None:
    assert VARIANTS == ("100k", "1m", "20m", "32m")
    (file,) = release("100k").files
    assert file.url == "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
    assert file.checksum == "md5:0e33842e24a9c977be4e0107933c0723"
