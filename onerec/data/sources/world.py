"""The synthetic world: tables written by `python -m onerec.world`, or simulated on the spot from `data.world`."""

import polars as pl

from onerec.data.settings import DataSettings, FeedbackKind
from onerec.data.sources.parquet import hash_files
from onerec.data.tables import Part, Provenance, RawTables, Source, read_parquet
from onerec.world.tables import ARTIFACT_KIND
from onerec.world.users import users_table
from onerec.world.world import World
from tokenizer.artifacts import read_manifest

_LICENCE = "none needed, simulated"
_FEEDBACK = {
    "click": FeedbackKind.BINARY,
    "like": FeedbackKind.BINARY,
    "follow": FeedbackKind.BINARY,
    "skip": FeedbackKind.BINARY,
    "watch_seconds": FeedbackKind.SECONDS,
    "duration_seconds": FeedbackKind.SECONDS,
    "propensity": FeedbackKind.RATING,
}


def load(settings: DataSettings) -> RawTables:
    """Read the world in `data.path`, or simulate the one that `data.world` describes.

    Raises:
        ArtifactError: `data.path` holds no finished world.
    """
    if settings.path is None:
        world = World(settings.world)
        events = pl.concat([pl.DataFrame(block) for block in world.log()])
        items, users, files = world.catalogue.table(), users_table(settings.world), {}
    else:
        read_manifest(settings.path, ARTIFACT_KIND)
        paths = [settings.path / f"{table}.parquet" for table in ("events", "items", "users")]
        events, items, users = (read_parquet(path) for path in paths)
        files = hash_files(paths)
    return RawTables(
        events=events,
        items=items,
        users=users,
        provenance=Provenance(source="synthetic short-video world", licence=_LICENCE, citation="", files=files),
        feedback=_FEEDBACK,
        parts={
            "events": (Part("events.parquet", events.height),),
            "items": (Part("items.parquet", items.height),),
            "users": (Part("users.parquet", users.height),),
        },
        notes=("every row is an exposure; data.min_feedback.click=1 keeps what was clicked",),
    )


SOURCES = (
    Source(
        name="world",
        description="a synthetic short-video world: simulated from data.world, or as python -m onerec.world wrote it",
        licence=_LICENCE,
        citation="",
        load=load,
    ),
)
