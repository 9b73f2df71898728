"""MIND (Microsoft News): impressions with clicks and non-clicks, out of the official zips (training and development).

Every news shown is an event, `is_click` its feedback, the impression's time its time and the order on the page the
order of rows. Clicks from before the log have an order but no time: `data.include_history` puts those of each user's
first impression in front, and then only the order is known.
"""

from pathlib import Path

import polars as pl

from onerec.data.settings import DataSettings, FeedbackKind
from onerec.data.sources.download import RemoteFile
from onerec.data.sources.reading import BadLine, Layout, members, read_delimited, refuse_bad_lines, require_members
from onerec.data.sources.release import Release, choose_variant
from onerec.data.tables import ITEM, POSITION, TIMESTAMP, USER, Part, RawTables, Source

LICENCE = "Microsoft Research License Terms: research use, no commercial use"
CITATION = (
    "F. Wu, Y. Qiao, J.-H. Chen, C. Wu, T. Qi, J. Lian, D. Liu, X. Xie, J. Gao, W. Wu, M. Zhou. MIND: A Large-scale "
    "Dataset for News Recommendation. ACL 2020"
)
VARIANTS = ("small", "large")

_BEHAVIORS, _NEWS = "behaviors.tsv", "news.tsv"
_TIME_FORMAT = "%m/%d/%Y %I:%M:%S %p"
_SHOWN_FORM = r"^\S+-[01](?: \S+-[01])*$"
_BEHAVIOR = dict.fromkeys(("impression", USER, "time", "history", "shown"), pl.String)
_ARTICLE = dict.fromkeys((ITEM, "category", "subcategory", "title", "abstract", "url", "entities", "more"), pl.String)
_LAYOUTS = {
    _BEHAVIORS: Layout(_BEHAVIOR, (USER, "time"), "\t", header=False),
    _NEWS: Layout(_ARTICLE, (ITEM, "category"), "\t", header=False),
}


def release(variant: str) -> Release:
    """Where one MIND set is published; there are no published checksums."""
    names = [f"MIND{variant}_{part}.zip" for part in ("train", "dev")]
    return Release(
        title=f"MIND-{variant}",
        page="https://msnews.github.io/",
        licence=LICENCE,
        citation=CITATION,
        folder="mind",
        files=tuple(
            RemoteFile(name, f"https://recodatasets.z20.web.core.windows.net/newsrec/{name}") for name in names
        ),
    )


def fetch(settings: DataSettings) -> list[Path]:
    """The official zips, downloaded if need be."""
    return release(choose_variant("mind", VARIANTS, settings.variant, "small")).locate(settings)


def load(settings: DataSettings) -> RawTables:
    """Read the impressions and the news of one MIND set.

    Raises:
        ConfigError: unknown variant.
        DataError: a missing file or malformed lines (the unlabelled test set among them); else as `fetch`.
    """
    variant = choose_variant("mind", VARIANTS, settings.variant, "small")
    paths = fetch(settings)
    behaviors: list[pl.DataFrame] = []
    news: list[pl.DataFrame] = []
    for path in paths:
        for member in members(path, *_LAYOUTS):
            frame = read_delimited(member, _LAYOUTS[member.name])
            if member.name == _NEWS:
                news.append(frame)
            else:
                behaviors.append(_with_times(frame))
    found = {_BEHAVIORS: behaviors, _NEWS: news}
    require_members({name: frames for name, frames in found.items() if frames}, (_BEHAVIORS, _NEWS), paths[0])
    log, articles = pl.concat(behaviors), pl.concat(news)
    items = articles.unique(ITEM, keep="first", maintain_order=True)
    num_empty = log["shown"].null_count()
    notes = {
        f"{_NEWS}: {{:,}} news that stand in both zips read once": articles.height - items.height,
        f"{_BEHAVIORS}: {{:,}} impressions that show nothing make no events": num_empty,
    }
    return RawTables(
        events=_with_history(log) if settings.include_history else _events(log),
        items=items.select(ITEM, pl.col("title", "abstract", "category", "subcategory").replace("", None)),
        users=None,
        provenance=release(variant).provenance(paths, *_LAYOUTS),
        feedback={"is_click": FeedbackKind.BINARY},
        parts={"items": (Part(_NEWS, items.height),)},
        notes=tuple(note.format(count) for note, count in notes.items() if count),
    )


def _with_times(behaviors: pl.DataFrame) -> pl.DataFrame:
    """The log with its times in Unix seconds (the publisher names no zone; taken as UTC).

    Raises:
        DataError: times or lists of news in another form.
    """
    log = behaviors.with_columns(
        pl.col("time").str.to_datetime(_TIME_FORMAT, strict=False).dt.epoch("s").alias(TIMESTAMP),
        pl.col("shown").str.strip_chars().replace("", None),
    )
    bad_time = log[TIMESTAMP].is_null()
    bad_shown = ~log["shown"].str.contains(_SHOWN_FORM).fill_null(True)
    reasons = {
        "time": "expected MM/DD/YYYY HH:MM:SS AM or PM",
        "shown": "expected news-0 or news-1 separated by blanks",
    }
    bad_lines = [
        BadLine(row + 1, f"{column} is {str(log[column][row])[:60]!r}, {reasons[column]}")
        for column, flags in (("time", bad_time), ("shown", bad_shown))
        for row in flags.arg_true()
    ]
    refuse_bad_lines(_BEHAVIORS, sorted(bad_lines, key=lambda bad_line: bad_line.line))
    return log


def _events(log: pl.DataFrame) -> pl.DataFrame:
    """One row for each news shown: user, item, time, click."""
    shown = log.lazy().filter(pl.col("shown").is_not_null()).select(USER, TIMESTAMP, pl.col("shown").str.split(" "))
    return (
        shown.explode("shown")
        .select(
            USER,
            pl.col("shown").str.head(-2).alias(ITEM),
            TIMESTAMP,
            pl.col("shown").str.ends_with("1").cast(pl.Int8).alias("is_click"),
        )
        .collect()
    )


def _with_history(log: pl.DataFrame) -> pl.DataFrame:
    """Clicks from before each user's first impression, then everything shown; positions instead of times."""
    first = log.sort(TIMESTAMP, maintain_order=True).unique(USER, keep="first", maintain_order=True)
    clicks = first.filter(pl.col("history").fill_null("") != "").select(
        USER, pl.col("history").str.split(" ").alias(ITEM)
    )
    before = clicks.explode(ITEM).with_columns(pl.lit(1, pl.Int8).alias("is_click"))
    shown = _events(log).sort(TIMESTAMP, maintain_order=True).drop(TIMESTAMP)
    return pl.concat([before, shown]).with_columns(pl.int_range(pl.len()).over(USER).cast(pl.Int32).alias(POSITION))


SOURCES = (
    Source(
        name="mind",
        description="MIND news impressions with clicks (https://msnews.github.io/)",
        licence=LICENCE,
        citation=CITATION,
        load=load,
        fetch=fetch,
        variants=VARIANTS,
    ),
)
