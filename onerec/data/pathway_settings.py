"""The pathways of a config's model section: what the context reads beside the items of the short-term history.

Numbers are those of the technical report (arXiv 2506.13695, section 2.2) where it has them.
"""

from typing import Literal

from pydantic import Field, PositiveInt

from tokenizer.settings import Settings

Features = tuple[str, ...] | Literal["auto"]

_OF_EVENTS = (
    "category columns of items, feedback columns of events, and timestamp (seconds since the event before; in the "
    "positive and the lifelong pathway seconds before the short-term history); auto: all of the schema"
)


class StaticSettings(Settings):
    """Columns of the users table, added to the start of the context."""

    features: Features = Field(
        "auto", description="category columns of users, and user_id where named; auto: all category columns"
    )


class EventSettings(Settings):
    """What is read of events beside the ids of their items."""

    features: Features = Field("auto", description=_OF_EVENTS)


class ShortTermSettings(EventSettings):
    """Features of the newest items; how many these are is `max_history_items` (the report: 20)."""


class PositiveSettings(EventSettings):
    """Older events with strong engagement, one context position each."""

    column: str = Field(description="feedback column that tells engagement")
    minimum: float = Field(1.0, description="least value of that column, such as 4 for a rating")
    length: PositiveInt = Field(256, description="newest such events before the short-term history that are read")


class LifelongSettings(EventSettings):
    """All events before the short-term history, clustered by item vectors and read through a few queries."""

    max_representatives: PositiveInt = Field(2000, description="clusters of a user at most, L_l")
    max_cluster_items: PositiveInt = Field(1, description="events of a cluster that is split no further, M")
    refresh_events: PositiveInt = Field(
        1, description="clusters are made anew every so many events; those since then stay outside this pathway"
    )
    vector_width: PositiveInt = Field(64, description="principal components of the item vectors that are clustered by")
    num_queries: PositiveInt = Field(128, description="context positions that stand for all of them")
    num_blocks: PositiveInt = Field(2, description="blocks of cross-attention from the queries to the clusters")


class ReturnSettings(Settings):
    """What followed each target, so that decoding can be asked for more of it (`onerec.data.returns`)."""

    columns: tuple[str, ...] = Field(min_length=1, description="feedback columns whose returns can be wished for")
    horizon: PositiveInt = Field(1, description="events from the target on whose mean is its return; 1: its own alone")
    num_buckets: PositiveInt = Field(4, ge=2, description="buckets of a return with equal shares of training events")
    unknown_share: float = Field(
        0.2, ge=0, lt=1, description="share of training returns that are withheld, so that nothing need be wished"
    )


class TableSettings(Settings):
    """Size of the features' vectors; it bounds their memory whatever the number of values."""

    own_rows: PositiveInt = Field(10_000, description="most frequent values of a category with a row of their own")
    shared_rows: PositiveInt = Field(10_000, description="rows that the other values share")
    num_hashes: PositiveInt = Field(2, description="shared rows of a value, whose mean is its vector")
    num_buckets: PositiveInt = Field(32, ge=2, description="buckets of a number")
    width: PositiveInt | None = Field(None, description="of a feature's vector; None for d_model / 8 (the report's)")
    static_width: PositiveInt | None = Field(
        None, description="the same for static features; None for d_model / 16 (the report's)"
    )


class PathwaySettings(Settings):
    """Pathways into the context; each is off until it is named (`static: {}` for its defaults)."""

    static: StaticSettings | None = None
    short_term: ShortTermSettings | None = None
    positive: PositiveSettings | None = None
    lifelong: LifelongSettings | None = None
    returns: ReturnSettings | None = None
    times: bool = Field(
        False, description="times of the short-term items, from which an hstu context learns biases; needs timestamps"
    )
    tables: TableSettings = TableSettings()


class CategorySpec(Settings):
    """A category column: how many of its values have rows of their own, and how many rows the others share."""

    name: str
    num_own: int = Field(ge=0)
    num_shared: int = Field(ge=0, description="0: every value of training has its own row")


class NumberSpec(Settings):
    """A column of numbers, put into the buckets between ascending edges."""

    name: str
    edges: tuple[float, ...]


class PathwaySpec(Settings):
    """The features of a model's pathways as fitted: what its configuration keeps.

    The features of the settings are resolved to the names of columns; `categories` and `numbers` are those that the
    pathways of events read, in the order in which keys and values of events stand.
    """

    settings: PathwaySettings
    static: tuple[CategorySpec, ...] = ()
    categories: tuple[CategorySpec, ...] = ()
    numbers: tuple[NumberSpec, ...] = ()
    returns: tuple[NumberSpec, ...] = ()
    vector_width: int = Field(0, description="of the item vectors that the lifelong pathway clusters by")
