"""KuaiRec 2.0: the big matrix as a log of plays, with video categories and, where it is there, the caption file.

The small matrix is not a log (every user was shown every video) and is left alone.
"""

from pathlib import Path

import polars as pl

from onerec.data.settings import DataSettings, FeedbackKind
from onerec.data.sources.download import RemoteFile
from onerec.data.sources.kuairand import USER_LAYOUT, user_table
from onerec.data.sources.reading import BadLine, Layout, members, read_delimited, require_members
from onerec.data.sources.release import Release, parts_of
from onerec.data.tables import ITEM, TIMESTAMP, USER, RawTables, Source

LICENCE = "CC BY-SA 4.0"
CITATION = (
    "C. Gao, S. Li, W. Lei, J. Chen, B. Li, P. Jiang, X. He, J. Mao, T.-S. Chua. KuaiRec: A Fully-Observed Dataset and "
    "Insights for Evaluating Recommender Systems. CIKM 2022"
)
_ADDRESS = "https://zenodo.org/records/18164998/files"
RELEASE = Release(
    title="KuaiRec 2.0",
    page="https://kuairec.com/",
    licence=LICENCE,
    citation=CITATION,
    folder="kuairec",
    files=(  # Zenodo publishes the checksums with the record
        RemoteFile("KuaiRec.zip", f"{_ADDRESS}/KuaiRec.zip", "md5:261550d472c48eff4990fb13c0e5bcf7"),
        RemoteFile(
            "kuairec_caption_category.csv",
            f"{_ADDRESS}/kuairec_caption_category.csv",
            "md5:31bc38cdccdf75a71df137779035f8cb",
        ),
    ),
)

_PLAYS, _CATEGORIES, _USERS = "big_matrix.csv", "item_categories.csv", "user_features.csv"
_CAPTIONS = "kuairec_caption_category.csv"
_PLAY = {
    "user_id": pl.Int64,
    "video_id": pl.Int64,
    "play_duration": pl.Float64,
    "video_duration": pl.Float64,
    "timestamp": pl.Float64,
    "watch_ratio": pl.Float32,
}
_LEVELS = ("first_level_category_name", "second_level_category_name", "third_level_category_name")
_CAPTION_TEXTS = ("caption", "manual_cover_text", "topic_tag", *_LEVELS)
_LAYOUTS = {
    _PLAYS: Layout(_PLAY, ("user_id", "video_id", "watch_ratio")),
    _CATEGORIES: Layout({"video_id": pl.Int64, "feat": pl.String}, ("video_id",), quoted=True),
    _USERS: USER_LAYOUT,
    # Captions hold line ends, so the file is taken as one chunk (it has 10,728 videos).
    _CAPTIONS: Layout(
        {"video_id": pl.Int64, **dict.fromkeys(_CAPTION_TEXTS, pl.String)},
        ("video_id",),
        quoted=True,
        chunk_bytes=1 << 30,
    ),
}


def fetch(settings: DataSettings) -> list[Path]:
    """The official zip and the caption file, downloaded if need be."""
    return RELEASE.locate(settings)


def load(settings: DataSettings) -> RawTables:
    """Read the big matrix: every play is an event, every video an item.

    Raises:
        DataError: a missing file or malformed lines (captions excepted: those are counted in a note); else as `fetch`.
    """
    paths = fetch(settings)
    frames: dict[str, pl.DataFrame] = {}
    bad_captions: list[BadLine] = []
    for path in paths:
        for member in members(path, *_LAYOUTS):
            tolerated = bad_captions if member.name == _CAPTIONS else None
            frames[member.name] = read_delimited(member, _LAYOUTS[member.name], tolerated)
    require_members(frames, (_PLAYS, _CATEGORIES, _USERS), paths[0])
    notes = [] if _CAPTIONS in frames else [f"{_CAPTIONS} is not there: videos have no text"]
    if bad_captions:
        lines = ", ".join(str(bad_line.line) for bad_line in bad_captions[:3])
        notes.append(f"{_CAPTIONS}: {len(bad_captions):,} malformed lines (first {lines}) left out")
    return RawTables(
        events=_events(frames[_PLAYS]),
        items=_items(frames[_CATEGORIES], frames.get(_CAPTIONS)),
        users=user_table(frames[_USERS]),
        provenance=RELEASE.provenance(paths, *_LAYOUTS),
        feedback={
            "watch_ratio": FeedbackKind.RATING,
            "play_time_s": FeedbackKind.SECONDS,
            "duration_s": FeedbackKind.SECONDS,
        },
        parts={
            "events": parts_of(frames, [_PLAYS]),
            "items": parts_of(frames, [_CATEGORIES]),
            "users": parts_of(frames, [_USERS]),
        },
        notes=tuple(notes),
    )


def _events(plays: pl.DataFrame) -> pl.DataFrame:
    return plays.select(
        pl.col("user_id").alias(USER),
        pl.col("video_id").alias(ITEM),
        pl.col("timestamp").alias(TIMESTAMP),
        "watch_ratio",
        (pl.col("play_duration") / 1000).cast(pl.Float32).alias("play_time_s"),
        (pl.col("video_duration") / 1000).cast(pl.Float32).alias("duration_s"),
    )


def _items(categories: pl.DataFrame, captions: pl.DataFrame | None) -> pl.DataFrame:
    tags = pl.col("feat").str.strip_chars("[]").str.replace_all(" ", "", literal=True).replace("", None)
    items = categories.select(pl.col("video_id").alias(ITEM), tags.alias("tags"))
    if captions is None:
        return items
    texts = captions.unique("video_id", keep="first", maintain_order=True).select(
        pl.col("video_id").alias(ITEM),
        pl.col(_CAPTION_TEXTS).replace({"UNKNOWN": None, "[]": None, "": None}),
    )
    return items.join(texts, on=ITEM, how="left", maintain_order="left")


SOURCES = (
    Source(
        name="kuairec",
        description="KuaiRec 2.0, the big matrix: short-video plays with watch ratios (https://kuairec.com/)",
        licence=LICENCE,
        citation=CITATION,
        load=load,
        fetch=fetch,
    ),
)
