"""Folders in the project's benchmark form: interactions.parquet, items.parquet and, if there is one, users.parquet.

`interactions.parquet` has `user`, `item` (row number in items.parquet, from 0), `position` and/or `timestamp` (Unix
seconds) or `timestamp_ms`, optionally `split`, and feedback columns. Row k of `items.parquet` is item k.
"""

import os
from pathlib import Path

import polars as pl

from onerec.data.settings import ColumnNames, DataSettings
from onerec.data.sources.parquet import OWN_TERMS, assemble, hash_files, read_items, read_users
from onerec.data.tables import POSITION, SPLIT, TIMESTAMP, Provenance, RawTables, Source, read_parquet
from onerec.errors import ConfigError, DataError

ROOT_VARIABLE = "ONEREC_DATA"
_DEFAULT_ROOT = Path(__file__).resolve().parents[3].parent / "shared" / "data"
_MILLISECONDS = "timestamp_ms"

_AMAZON14 = "He & McAuley, Ups and Downs, WWW 2016; McAuley et al., Image-Based Recommendations, SIGIR 2015"
_AMAZON18 = "Ni, Li & McAuley, Justifying Recommendations using Distantly-Labeled Reviews, EMNLP 2019"
_MOVIELENS = "Harper & Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015"
_MICROLENS = "Ni et al., A Content-Driven Micro-Video Recommendation Dataset at Scale, arXiv 2309.15379, 2023"
_TRIVAGO = "Knees et al., RecSys Challenge 2019: Session-based Hotel Recommendations, RecSys 2019"
_RESEARCH = "no formal licence; released for research"
# Terms of the benchmark folders known by name; a folder of one's own has its owner's.
_TERMS = {
    "amazon14_beauty": (_RESEARCH, _AMAZON14),
    "amazon14_sports": (_RESEARCH, _AMAZON14),
    "amazon18_games": (_RESEARCH, _AMAZON18),
    "amazon18_scientific": (_RESEARCH, _AMAZON18),
    "amazon18_industrial": (_RESEARCH, _AMAZON18),
    "kuairand_pure": ("CC BY-SA 4.0", "Gao et al., KuaiRand, CIKM 2022"),
    "microlens_50k": ("academic research only", _MICROLENS),
    "movielens_100k": ("research use, no redistribution without GroupLens' permission", _MOVIELENS),
    "movielens_latest_small": ("research use, no commercial use", _MOVIELENS),
    "trivago_sessions": ("challenge data, research only", _TRIVAGO),
}


def data_root() -> Path:
    """Where named folders lie: $ONEREC_DATA, or `../shared/data` beside the checkout."""
    return Path(os.environ.get(ROOT_VARIABLE, _DEFAULT_ROOT))


def find_folder(path: Path | None) -> Path:
    """The folder that a path or a name under `data_root()` means.

    Raises:
        ConfigError: nothing given.
        DataError: neither is there; the message lists the names that are.
    """
    if path is None:
        raise ConfigError("data.path: found nothing, expected a folder or a name under $ONEREC_DATA. Set data.path.")
    for folder in (path, data_root() / path):
        if (folder / "interactions.parquet").is_file():
            return folder
    root = data_root()
    names = sorted(file.parent.name for file in root.glob("*/interactions.parquet"))
    raise DataError(
        f"data.path {str(path)!r}: found no interactions.parquet there or under {root}; names there: "
        f"{', '.join(names) or 'none'}. Give a folder, or set ${ROOT_VARIABLE}."
    )


def load(settings: DataSettings) -> RawTables:
    """Read one folder; with `include_history`, history.parquet goes before it and only the order is known.

    Raises:
        ConfigError, DataError: as `find_folder`; a missing or truncated file, a missing column.
    """
    folder = find_folder(settings.path)
    events_file, items_file, users_file = (folder / f"{name}.parquet" for name in ("interactions", "items", "users"))
    logs = [(events_file.name, read_parquet(events_file))]
    if settings.include_history:
        logs = _with_history(logs[0][1], folder)
    columns = logs[-1][1].columns
    time = next((name for name in (TIMESTAMP, _MILLISECONDS) if name in columns), None)
    names = ColumnNames(
        user="user",
        item="item",
        timestamp=time,
        position=POSITION if POSITION in columns else None,
        split=SPLIT if SPLIT in columns else None,
    )
    unit = "ms" if time == _MILLISECONDS else "s"
    licence, citation = _TERMS.get(folder.resolve().name, (OWN_TERMS, ""))
    return assemble(
        logs,
        read_items(items_file, "item", settings.vectors),
        read_users(users_file, "user") if users_file.is_file() else None,
        settings.model_copy(update={"columns": names, "timestamp_unit": unit}),
        Provenance(
            source=folder.resolve().name,
            licence=licence,
            citation=citation,
            files=hash_files([*(folder / name for name, _ in logs), items_file, users_file, settings.vectors]),
        ),
    )


def _with_history(events: pl.DataFrame, folder: Path) -> list[tuple[str, pl.DataFrame]]:
    """Earlier events first; positions of the later ones go on where each user's history ends.

    Only columns of both files stay (and `split`, in which the history is training), since the others are
    unknown for the history; times are among those that go.
    """
    file = folder / "history.parquet"
    history = read_parquet(file).with_columns(pl.col(POSITION).cast(pl.Int64))
    time = next(name for name in (TIMESTAMP, _MILLISECONDS) if name in events.columns)
    ends = history.group_by("user").agg((pl.col(POSITION).max() + 1).alias("end"))
    rank = pl.col(time).rank("ordinal").over("user").cast(pl.Int64) - 1
    later = events.join(ends, on="user", how="left", maintain_order="left").with_columns(
        (rank + pl.col("end").fill_null(0)).alias(POSITION)
    )
    shared = [name for name in history.columns if name in later.columns]
    if SPLIT in later.columns:
        history = history.with_columns(pl.lit("train").alias(SPLIT))
        later = later.with_columns(pl.col(SPLIT).cast(pl.String))
        shared.append(SPLIT)
    return [(file.name, history.select(shared)), ("interactions.parquet", later.select(shared))]


SOURCES = (
    Source(
        name="folder",
        description="a folder with interactions.parquet and items.parquet (users.parquet): a path, or a name under "
        f"${ROOT_VARIABLE}",
        licence=OWN_TERMS,
        citation="",
        load=load,
    ),
)
