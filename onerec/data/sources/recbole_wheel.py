"""The embedded default: MovieLens 100K as it lies inside the `recbole` wheel, which any package index has.

The wheel is downloaded at a pinned version and hash and read as a zip; it is never installed.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl

from onerec.data.settings import DataSettings, FeedbackKind
from onerec.data.sources.download import RemoteFile, cache_folder, verify_checksum
from onerec.data.sources.movielens import CITATION, LICENCE
from onerec.data.sources.reading import Layout, members, read_delimited, require_members
from onerec.data.sources.release import Release, parts_of
from onerec.data.tables import ITEM, TIMESTAMP, USER, RawTables, Source
from onerec.errors import DataUnavailableError
from tokenizer.artifacts import explained_os_errors

VERSION = "1.2.1"
_CHECKSUM = "sha256:9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
WHEEL = RemoteFile(
    name=f"recbole-{VERSION}-py3-none-any.whl",
    url=f"https://pypi.org/project/recbole/{VERSION}/",
    checksum=_CHECKSUM,
)
RELEASE = Release(
    title="MovieLens 100K, in the recbole wheel",
    page="https://grouplens.org/datasets/movielens/100k/",
    licence=LICENCE,
    citation=CITATION,
    folder="recbole",
    files=(WHEEL,),
)
_TIMEOUT_S = 300
_REMEDY = (
    f"Download {WHEEL.name} where there is a connection and give it with --from PATH, choose another data.source, "
    "or use the synthetic world."
)

_RATINGS, _MOVIES, _USERS = "ml-100k.inter", "ml-100k.item", "ml-100k.user"
_RATING = {
    "user_id:token": pl.Int64,
    "item_id:token": pl.Int64,
    "rating:float": pl.Float32,
    "timestamp:float": pl.Int64,
}
_MOVIE = {
    "item_id:token": pl.Int64,
    "movie_title:token_seq": pl.String,
    "release_year:token": pl.String,
    "class:token_seq": pl.String,
}
_USER = {"user_id:token": pl.Int64, "age:token": pl.Int64} | dict.fromkeys(
    ("gender:token", "occupation:token", "zip_code:token"), pl.String
)
_LAYOUTS = {
    _RATINGS: Layout(_RATING, tuple(_RATING), "\t"),
    _MOVIES: Layout(_MOVIE, ("item_id:token", "movie_title:token_seq"), "\t"),
    _USERS: Layout(_USER, ("user_id:token",), "\t"),
}


def fetch(settings: DataSettings) -> list[Path]:
    """The wheel: the one named by `data.path`, the one in the cache, or a new one from the package index.

    Raises:
        DataUnavailableError: it cannot be had.
        DataError: it is another wheel.
        ArtifactError: the cache cannot be written.
    """
    if settings.path is not None:
        return RELEASE.locate(settings)
    folder = (settings.cache or cache_folder()) / RELEASE.folder
    path = folder / WHEEL.name
    if path.is_file():
        verify_checksum(path, _CHECKSUM)
        return [path]
    RELEASE.show_terms()
    with explained_os_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        _download_wheel(path)
    return [path]


def load(settings: DataSettings) -> RawTables:
    """Read the ratings, movies and users out of the wheel.

    Raises:
        DataError: a missing file or malformed lines; else as `fetch`.
    """
    (path,) = paths = fetch(settings)
    frames = {member.name: read_delimited(member, _LAYOUTS[member.name]) for member in members(path, *_LAYOUTS)}
    require_members(frames, tuple(_LAYOUTS), path)
    return RawTables(
        events=frames[_RATINGS].rename(
            dict(zip(_RATING, (USER, ITEM, "rating", TIMESTAMP), strict=True)),
        ),
        items=frames[_MOVIES].select(
            pl.col("item_id:token").alias(ITEM),
            pl.col("movie_title:token_seq").alias("title"),
            pl.col("release_year:token").cast(pl.Int16, strict=False).alias("year"),
            pl.col("class:token_seq").str.replace_all(" ", "|", literal=True).alias("genres"),
        ),
        users=frames[_USERS].rename({name: name.removesuffix(":token") for name in _USER}),
        provenance=RELEASE.provenance(paths),
        feedback={"rating": FeedbackKind.RATING},
        parts={
            "events": parts_of(frames, [_RATINGS]),
            "items": parts_of(frames, [_MOVIES]),
            "users": parts_of(frames, [_USERS]),
        },
    )


def _download_wheel(path: Path) -> None:
    """Let pip bring the wheel beside `path`, check it, and put it in place."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".pip.") as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "20"]
        command += ["--dest", temporary, f"recbole=={VERSION}"]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise DataUnavailableError(f"recbole=={VERSION}: no answer from pip in {_TIMEOUT_S} s. {_REMEDY}") from None
        wheel = Path(temporary) / WHEEL.name
        if run.returncode != 0 or not wheel.is_file():
            reason = (run.stderr.strip().splitlines() or ["pip wrote no wheel"])[-1]
            raise DataUnavailableError(f"recbole=={VERSION}: the package index does not give it ({reason}). {_REMEDY}")
        verify_checksum(wheel, _CHECKSUM)
        os.replace(wheel, path)


SOURCES = (
    Source(
        name="embedded",
        description="MovieLens 100K out of the recbole wheel: real data that needs only a package index",
        licence=LICENCE,
        citation=CITATION,
        load=load,
        fetch=fetch,
    ),
)
