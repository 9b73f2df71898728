"""The three tables of a world as one folder of Parquet files under a manifest."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from onerec.errors import ArtifactError
from onerec.world.settings import WorldSettings
from onerec.world.users import users_table
from onerec.world.world import EVENT_COLUMNS, World
from tokenizer.artifacts import Manifest, atomic_folder, hash_settings, read_manifest, write_manifest
from tokenizer.settings import build_settings, dump_yaml

ARTIFACT_KIND = "world"
_SETTINGS_FILE = "world.yaml"


def write_world(settings: WorldSettings, folder: Path) -> Manifest:
    """Write events.parquet, items.parquet, users.parquet and world.yaml; the log passes through memory in blocks.

    Raises:
        ArtifactError: the disk is full, the folder cannot be written, or it holds something else than a world.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _SETTINGS_FILE).is_file():
        raise ArtifactError(f"{folder}: found a folder with other contents, which would be lost. Choose a new one.")
    world = World(settings)
    schema = pa.schema([(name, pa.from_numpy_dtype(np.dtype(dtype))) for name, dtype in EVENT_COLUMNS.items()])
    with atomic_folder(folder) as temporary:
        with (
            pq.ParquetWriter(temporary / "events.parquet", schema, compression="zstd") as writer,
            tqdm(total=settings.num_events, desc="Simulating events", unit="event", unit_scale=True) as progress,
        ):
            for block in world.log():
                writer.write_table(pa.table(block, schema=schema))
                progress.update(len(block["user_id"]))
        world.catalogue.table().write_parquet(temporary / "items.parquet")
        users_table(settings).write_parquet(temporary / "users.parquet")
        (temporary / _SETTINGS_FILE).write_text(dump_yaml(settings), encoding="utf-8")
        return write_manifest(
            temporary, ARTIFACT_KIND, {}, hash_settings(settings), {"settings": settings.model_dump(mode="json")}
        )


def open_world(folder: Path) -> World:
    """The world whose tables lie in `folder`, to go on from where its log ends.

    Raises:
        ArtifactError: no finished world there, or its files were changed.
    """
    manifest = read_manifest(folder, ARTIFACT_KIND)
    return World(build_settings(WorldSettings, manifest.details["settings"], origin=str(folder)))
