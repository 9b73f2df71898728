"""Settings of the `data` section: where events come from, how they are checked, filtered and split."""

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from onerec.world.settings import WorldSettings
from tokenizer.settings import Settings


class FeedbackKind(StrEnum):
    """What the numbers in a feedback column mean."""

    BINARY = "binary"  # 0 or 1
    COUNT = "count"  # whole numbers from 0
    SECONDS = "seconds"  # durations from 0
    RATING = "rating"  # any finite number


class ColumnNames(Settings):
    """The names that the columns of one's own tables have (source `parquet`)."""

    user: str = Field(default="user_id", description="events and users: the user's key, string or integer")
    item: str = Field(default="item_id", description="events and items: the item's key, string or integer")
    timestamp: str | None = Field(
        default="timestamp", description="events: the moment, or null where only the order is known"
    )
    position: str | None = Field(
        default=None, description="events: place within the user's history, and tie-break of the time"
    )
    split: str | None = Field(default=None, description="events: split label, for the split kind `column`")


class TableFiles(Settings):
    """File names of the three tables within `path` (source `parquet`); events may be a glob: `log-*.parquet`."""

    events: str = "events.parquet"
    items: str = "items.parquet"
    users: str = Field(default="users.parquet", description="read where it exists")


class Policies(Settings):
    """What happens to each kind of offence that need not end the run; the count is printed either way."""

    duplicates: Literal["refuse", "keep", "drop"] = Field(
        default="refuse", description="events of one user with one item at one moment; `drop` keeps the first"
    )
    unknown_items: Literal["refuse", "drop"] = Field(
        default="refuse", description="events whose item is null or not in the items table"
    )
    bad_timestamps: Literal["refuse", "drop"] = Field(default="refuse", description="null, NaN or future timestamps")
    single_event_users: Literal["refuse", "keep"] = Field(
        default="refuse", description="users with one event after the core filter; core.user_events=2 drops them"
    )
    items_without_text: Literal["refuse", "keep"] = Field(
        default="refuse", description="items whose text columns are all empty, after the core filter"
    )


class CoreSettings(Settings):
    """Iterative k-core: users and items with fewer events are dropped until none is left to drop.

    5 and 5 is the 5-core of the TIGER line (Rajput et al. 2023, section 4.1). 0 turns a side off. With
    `item_events` on, items that fall below it leave the catalogue too; otherwise the whole catalogue stays.
    """

    user_events: int = Field(default=0, ge=0, description="fewest events of a user")
    item_events: int = Field(default=0, ge=0, description="fewest events of an item")


class SplitSettings(Settings):
    """How events become training, validation and test events."""

    kind: Literal["leave_one_out", "global_time", "column"] = "leave_one_out"
    validation_from: datetime | None = Field(
        default=None, description="global_time: first moment of validation, UTC without a zone"
    )
    test_from: datetime | None = Field(default=None, description="global_time: first moment of test, likewise")
    validation_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="global_time without dates: share of all events"
    )
    test_fraction: float = Field(default=0.1, gt=0, lt=1, description="global_time without dates: share of all events")
    labels: dict[str, Literal["train", "validation", "test"]] = Field(
        default={
            "train": "train",
            "valid": "validation",
            "validation": "validation",
            "test": "test",
        },
        description="column: what each label in the split column means",
    )

    @field_validator("validation_from", "test_from")
    @classmethod
    def _in_utc(cls, moment: datetime | None) -> datetime | None:
        return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)

    @model_validator(mode="after")
    def _check(self) -> "SplitSettings":
        if (self.validation_from is None) != (self.test_from is None):
            raise ValueError("validation_from and test_from are given together or not at all")
        if self.validation_from and self.test_from and self.validation_from > self.test_from:
            raise ValueError("validation_from lies after test_from")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction leave nothing to train on")
        return self


class SessionSettings(Settings):
    """What a session is, and which ones are training lists; the numbers are those of OneRec v1 where it has them."""

    pause_seconds: float = Field(default=1800.0, gt=0, description="a session ends before a longer pause")
    watched: dict[str, float] = Field(
        default={}, description="feedback column -> least value of an event that counts; {}: all events do"
    )
    min_items: int = Field(default=5, ge=1, description="different items watched in a session, at least")
    seconds_column: str | None = Field(default=None, description="feedback column that is summed over a session")
    min_seconds: float = Field(default=0.0, ge=0, description="least such sum; needs seconds_column")
    interactions: tuple[str, ...] = Field(
        default=(), description="feedback columns, one of them above 0 in some event of the session; (): none needed"
    )

    @model_validator(mode="after")
    def _check(self) -> "SessionSettings":
        if self.min_seconds and self.seconds_column is None:
            raise ValueError(f"min_seconds: found {self.min_seconds:g} without seconds_column; name the column to sum")
        return self


class DataSettings(Settings):
    """The `data` section of a config."""

    source: str = Field(default="folder", description="a name that `python -m onerec.data sources` lists")
    path: Path | None = Field(
        default=None,
        description="folder: a name under $ONEREC_DATA or a path; parquet: the folder of the tables; "
        "public sets: a file or folder already downloaded (--from)",
    )
    variant: str | None = Field(
        default=None, description="public sets with several parts: which, such as `Beauty` or `100k`"
    )
    cache: Path | None = Field(
        None, description="where public sets are downloaded to; null: $ONEREC_CACHE, else .cache/onerec in the project"
    )

    files: TableFiles = TableFiles()
    columns: ColumnNames = ColumnNames()
    timestamp_unit: Literal["s", "ms", "us"] = Field(default="s", description="unit of a numeric timestamp column")
    feedback: dict[str, FeedbackKind] | Literal["auto"] = Field(
        default="auto", description="event column -> kind; auto: by name and type, reported (see onerec/data/schema.py)"
    )
    text_columns: tuple[str, ...] | Literal["auto"] = Field(
        default="auto",
        description="item columns read as text, in this order; auto: string columns that are not identifiers",
    )
    category_columns: tuple[str, ...] | Literal["auto"] = Field(
        default="auto", description="item columns read as categories; auto: columns whose values repeat"
    )
    user_category_columns: tuple[str, ...] | Literal["auto"] = Field(default="auto", description="the same for users")
    vectors: Path | None = Field(
        default=None, description="ready item vectors: a .npy file (items, width), row k for row k of the items table"
    )
    include_history: bool = Field(
        default=False,
        description="folder: put history.parquet (earlier events of unknown time) first; only the order is known then",
    )

    world: WorldSettings = Field(WorldSettings(), description="world: what to simulate where no path is given")

    min_feedback: dict[str, float] = Field(
        default={}, description="keep only events whose feedback column is at least this, such as is_click: 1"
    )
    policies: Policies = Policies()
    core: CoreSettings = CoreSettings()
    split: SplitSettings = SplitSettings()
    sessions: SessionSettings | None = Field(
        default=None, description="lists for model.session_items; null: the data are single events"
    )
