"""KuaiRand (Pure, 1K, 27K): short-video impressions with feedback, out of the official tar.gz files.

The standard logs are read; the random-exposure log is another policy's, and the daily statistics of the videos cover
the whole period, so that as features they would leak the future: both are left alone.
"""

from fnmatch import fnmatch
from pathlib import Path

import polars as pl

from onerec.data.settings import DataSettings, FeedbackKind
from onerec.data.sources.download import RemoteFile
from onerec.data.sources.reading import Columns, Layout, members, read_delimited, require_members
from onerec.data.sources.release import Release, choose_variant, parts_of
from onerec.data.tables import ITEM, TIMESTAMP, USER, RawTables, Source

LICENCE = "CC BY-SA 4.0"
CITATION = (
    "C. Gao, S. Li, Y. Zhang, J. Chen, B. Li, W. Lei, P. Jiang, X. He. KuaiRand: An Unbiased Sequential Recommendation "
    "Dataset with Randomly Exposed Videos. CIKM 2022"
)
_FILES = {  # the checksums stand in the official README
    "pure": ("KuaiRand-Pure.tar.gz", "md5:0820331067a3784d9691136f772b35a7"),
    "1k": ("KuaiRand-1K.tar.gz", "md5:6b0b9c8222d67fcd4c676218edca3f1f"),
    "27k": ("KuaiRand-27K.tar.gz", "md5:3e3c799a24e2d23a4d2c757fbf9adf59"),
}
VARIANTS = tuple(_FILES)

_LOGS, _VIDEOS, _USERS = "log_standard_*.csv", "video_features_basic_*.csv", "user_features_*.csv"
_FLAGS = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "is_profile_enter")
_DURATIONS = {  # milliseconds in the file -> seconds in the table
    "play_time_ms": "play_time_s",
    "duration_ms": "duration_s",
    "profile_stay_time": "profile_stay_time_s",
    "comment_stay_time": "comment_stay_time_s",
}
_LOG: Columns = {
    **dict.fromkeys(("user_id", "video_id", "time_ms"), pl.Int64),
    **dict.fromkeys(_FLAGS, pl.Int8),
    **dict.fromkeys(_DURATIONS, pl.Float64),
}
_VIDEO_NUMBERS = ("author_id", "visible_status", "server_width", "server_height", "music_id", "music_type")
_VIDEO: Columns = {
    "video_id": pl.Int64,
    **dict.fromkeys(("video_type", "upload_dt", "upload_type", "tag"), pl.String),
    **dict.fromkeys((*_VIDEO_NUMBERS, "video_duration"), pl.Float64),  # whole numbers, but written as 720.0
}
_COUNTED = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_USER_TEXT = ("user_active_degree", *(f"{name}_range" for name in _COUNTED))
_USER_NUMBERS = (
    *("is_lowactive_period", "is_live_streamer", "is_video_author"),
    *_COUNTED,
    *(f"onehot_feat{index}" for index in range(18)),
)
_USER: Columns = {
    "user_id": pl.Int64,
    **dict.fromkeys(_USER_TEXT, pl.String),
    **dict.fromkeys(_USER_NUMBERS, pl.Float64),
}
_LAYOUTS = {
    _LOGS: Layout(_LOG, ("user_id", "video_id", "time_ms", *_FLAGS)),
    _VIDEOS: Layout(_VIDEO, ("video_id",), quoted=True),
    _USERS: Layout(_USER, ("user_id",), quoted=True),
}
USER_LAYOUT = _LAYOUTS[_USERS]


def release(variant: str) -> Release:
    """Where one KuaiRand set is published."""
    name, checksum = _FILES[variant]
    return Release(
        title=name.removesuffix(".tar.gz"),
        page="https://kuairand.com/",
        licence=LICENCE,
        citation=CITATION,
        folder="kuairand",
        files=(RemoteFile(name, f"https://zenodo.org/records/10439422/files/{name}", checksum),),
    )


def fetch(settings: DataSettings) -> list[Path]:
    """The official tar.gz, downloaded if need be."""
    return release(choose_variant("kuairand", VARIANTS, settings.variant, "pure")).locate(settings)


def load(settings: DataSettings) -> RawTables:
    """Read one KuaiRand set: every impression of the standard logs is an event.

    Raises:
        ConfigError: unknown variant.
        DataError: a missing file or malformed lines; else as `fetch`.
    """
    variant = choose_variant("kuairand", VARIANTS, settings.variant, "pure")
    (path,) = paths = fetch(settings)
    frames: dict[str, pl.DataFrame] = {}
    for member in members(path, *_LAYOUTS):
        pattern = next(pattern for pattern in _LAYOUTS if fnmatch(member.name, pattern))
        frames[member.name] = read_delimited(member, _LAYOUTS[pattern])
    require_members(frames, tuple(_LAYOUTS), path)
    logs, videos, users = ([name for name in sorted(frames) if fnmatch(name, pattern)] for pattern in _LAYOUTS)
    return RawTables(
        events=_events(pl.concat([frames[name] for name in logs], rechunk=False)),
        items=_items(pl.concat([frames[name] for name in videos])),
        users=user_table(pl.concat([frames[name] for name in users])),
        provenance=release(variant).provenance(paths, *_LAYOUTS),
        feedback=dict.fromkeys(_FLAGS, FeedbackKind.BINARY) | dict.fromkeys(_DURATIONS.values(), FeedbackKind.SECONDS),
        parts={
            "events": parts_of(frames, logs),
            "items": parts_of(frames, videos),
            "users": parts_of(frames, users),
        },
        notes=("the random-exposure log and the statistics of the videos over the whole period are not read",),
    )


def user_table(users: pl.DataFrame) -> pl.DataFrame:
    """The user features of the Kuaishou sets: `user_id`, text ranges, and whole numbers."""
    return users.select(pl.col("user_id").alias(USER), *_USER_TEXT, pl.col(_USER_NUMBERS).cast(pl.Int64))


def _events(log: pl.DataFrame) -> pl.DataFrame:
    return log.select(
        pl.col("user_id").alias(USER),
        pl.col("video_id").alias(ITEM),
        (pl.col("time_ms") / 1000).alias(TIMESTAMP),
        *_FLAGS,
        *((pl.col(raw) / 1000).cast(pl.Float32).alias(name) for raw, name in _DURATIONS.items()),
    )


def _items(videos: pl.DataFrame) -> pl.DataFrame:
    return videos.select(
        pl.col("video_id").alias(ITEM),
        "video_type",
        "upload_dt",
        "upload_type",
        pl.col("tag").alias("tags"),
        pl.col(_VIDEO_NUMBERS).cast(pl.Int64),
        (pl.col("video_duration") / 1000).alias("duration_s"),
    )


SOURCES = (
    Source(
        name="kuairand",
        description="KuaiRand short-video impressions with twelve feedback signals (https://kuairand.com/)",
        licence=LICENCE,
        citation=CITATION,
        load=load,
        fetch=fetch,
        variants=VARIANTS,
    ),
)
