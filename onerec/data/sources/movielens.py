"""MovieLens 100K, 1M, 20M and 32M, out of the official zip files of GroupLens.

Titles lose their year, which becomes a column; several genres are joined with `|`.
"""

from pathlib import Path

import polars as pl

from onerec.data.settings import DataSettings, FeedbackKind
from onerec.data.sources.download import RemoteFile
from onerec.data.sources.reading import Layout, members, read_delimited, require_members
from onerec.data.sources.release import Release, choose_variant, parts_of
from onerec.data.tables import ITEM, TIMESTAMP, USER, Part, RawTables, Source, TableName

LICENCE = (
    "GroupLens: research use, no commercial use without permission, no redistribution without permission; "
    "no endorsement by the University of Minnesota may be implied"
)
CITATION = (
    "F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. "
    "ACM Transactions on Interactive Intelligent Systems 5, 4, Article 19"
)
# GroupLens publishes each of these as NAME.zip.md5 beside the file.
_MD5 = {
    "100k": "0e33842e24a9c977be4e0107933c0723",
    "1m": "c4d9eecfca2ab87c1945afe126590906",
    "20m": "cd245b17a1ae2cc31bb14903e1204af3",
    "32m": "d472be332d4daa821edc399621853b57",
}
VARIANTS = tuple(_MD5)

_GENRES_100K = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
_RATING = {USER: pl.Int64, ITEM: pl.Int64, "rating": pl.Float32, TIMESTAMP: pl.Int64}
_MOVIE = {ITEM: pl.Int64, "title": pl.String, "genres": pl.String}
_RATING_CSV = {"userId": pl.Int64, "movieId": pl.Int64, "rating": pl.Float32, "timestamp": pl.Int64}
_MOVIE_CSV = {"movieId": pl.Int64, "title": pl.String, "genres": pl.String}
_MOVIE_100K = {
    ITEM: pl.Int64,
    "title": pl.String,
    **dict.fromkeys(("release_date", "video_release_date", "imdb_url"), pl.String),
    **dict.fromkeys(_GENRES_100K, pl.Int8),
}
_USER_100K = {USER: pl.Int64, "age": pl.Int64, **dict.fromkeys(("gender", "occupation", "zip_code"), pl.String)}
_USER_1M = {USER: pl.Int64, "gender": pl.String, "age": pl.Int64, "occupation": pl.Int64, "zip_code": pl.String}

_LAYOUTS_100K = {
    "u.data": Layout(_RATING, tuple(_RATING), "\t", header=False),
    "u.item": Layout(_MOVIE_100K, (ITEM, "title", *_GENRES_100K), "|", header=False, encoding="latin-1"),
    "u.user": Layout(_USER_100K, (USER,), "|", header=False),
}
_LAYOUTS_1M = {
    "ratings.dat": Layout(_RATING, tuple(_RATING), "::", header=False),
    "movies.dat": Layout(_MOVIE, (ITEM, "title"), "::", header=False, encoding="latin-1"),
    "users.dat": Layout(_USER_1M, (USER,), "::", header=False),
}
_LAYOUTS_CSV = {
    "ratings.csv": Layout(_RATING_CSV, tuple(_RATING_CSV)),
    "movies.csv": Layout(_MOVIE_CSV, ("movieId", "title"), quoted=True),
}
_LAYOUTS = {"100k": _LAYOUTS_100K, "1m": _LAYOUTS_1M, "20m": _LAYOUTS_CSV, "32m": _LAYOUTS_CSV}


def release(variant: str) -> Release:
    """Where one MovieLens set is published."""
    name = f"ml-{variant}.zip"
    url = f"https://files.grouplens.org/datasets/movielens/{name}"
    return Release(
        title=f"MovieLens {variant.upper()}",
        page=f"https://grouplens.org/datasets/movielens/{variant}/",
        licence=LICENCE,
        citation=CITATION,
        folder="movielens",
        files=(RemoteFile(name, url, f"md5:{_MD5[variant]}"),),
    )


def fetch(settings: DataSettings) -> list[Path]:
    """The official zip, downloaded if need be."""
    return release(choose_variant("movielens", VARIANTS, settings.variant, "100k")).locate(settings)


def load(settings: DataSettings) -> RawTables:
    """Read one MovieLens set from its zip, or from a folder with its files.

    Raises:
        ConfigError: unknown variant.
        DataError: a missing file or malformed lines; else as `fetch`.
    """
    variant = choose_variant("movielens", VARIANTS, settings.variant, "100k")
    layouts = _LAYOUTS[variant]
    (path,) = paths = fetch(settings)
    frames = {member.name: read_delimited(member, layouts[member.name]) for member in members(path, *layouts)}
    require_members(frames, tuple(layouts), path)
    ratings_file, items_file, *users_file = layouts
    users = frames[users_file[0]] if users_file else None
    parts: dict[TableName, tuple[Part, ...]] = {
        "events": parts_of(frames, [ratings_file]),
        "items": parts_of(frames, [items_file]),
    }
    if users is not None:
        parts["users"] = parts_of(frames, users_file)
    return RawTables(
        events=frames[ratings_file].rename({"userId": USER, "movieId": ITEM}, strict=False),
        items=_items(frames[items_file].rename({"movieId": ITEM}, strict=False)),
        users=users,
        provenance=release(variant).provenance(paths, *layouts),
        feedback={"rating": FeedbackKind.RATING},
        parts=parts,
    )


def _items(movies: pl.DataFrame) -> pl.DataFrame:
    if "genres" not in movies.columns:  # 100K: one 0/1 column a genre
        flags = [pl.when(pl.col(genre) == 1).then(pl.lit(genre)) for genre in _GENRES_100K]
        movies = movies.with_columns(pl.concat_str(flags, separator="|", ignore_nulls=True).alias("genres"))
    title, year = r"^(.*?)\s*\(\d{4}\)\s*$", r"\((\d{4})\)\s*$"
    return movies.select(
        ITEM,
        pl.coalesce(pl.col("title").str.extract(title), "title").alias("title"),
        pl.col("title").str.extract(year).cast(pl.Int16).alias("year"),
        pl.col("genres").replace({"": None, "(no genres listed)": None}),
    )


SOURCES = (
    Source(
        name="movielens",
        description="MovieLens ratings with times, titles and genres (https://grouplens.org/datasets/movielens/)",
        licence=LICENCE,
        citation=CITATION,
        load=load,
        fetch=fetch,
        variants=VARIANTS,
    ),
)
