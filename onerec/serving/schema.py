"""What the endpoint reads and answers: the types of its OpenAPI document.

Empty lists and tables come from factories: a default that is written as such would be copied for every request.
Recommendations are plain dataclasses: what the engine has found needs no validation, which would take longer than to
write it as JSON.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)


def _require_unicode(text: str) -> str:
    """Refuse halves of surrogate pairs, which JSON can write and nothing can store."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("expected text, found half of a surrogate pair") from None
    return text


Text = Annotated[StrictStr, AfterValidator(_require_unicode)]
ItemId = StrictStr | StrictInt
UserId = Text | StrictInt
FieldValue = Text | StrictInt | StrictBool | FiniteFloat | None
PositiveCount = Annotated[StrictInt, Field(ge=1)]
RewardWeight = Annotated[FiniteFloat, Field(ge=-1e6, le=1e6)]


class ItemFilter(BaseModel):
    """What an item must be to be returned; the search itself keeps to it, so that k items come back if k pass."""

    model_config = ConfigDict(extra="forbid")

    items: list[ItemId] | None = Field(None, description="only these, such as what is in stock where the user is")
    columns: dict[Text, Annotated[list[Text | StrictInt | StrictBool], Field(min_length=1)]] = Field(
        default={},
        description="column of the catalogue -> values of which an item has one, as its whole text or a part of it "
        "between | , ; or >; in every column named",
    )


class KnownEvents(BaseModel):
    """Columns beside the items of a history, one value an item."""

    model_config = ConfigDict(extra="forbid")

    timestamps: list[FiniteFloat] | None = Field(None, description="Unix seconds, never descending")
    feedback: dict[Text, list[FiniteFloat | None]] = Field(
        default_factory=dict, description="feedback column -> values; null where not known"
    )


class RecommendRequest(BaseModel):
    """One user's history and what is asked for."""

    model_config = ConfigDict(extra="forbid")

    user_id: UserId | None = Field(None, description="user whose stored events are the history; this or `history`")
    history: list[ItemId] | None = Field(
        None, description="ids of the catalogue, oldest first; empty for a user without history; this or `user_id`"
    )
    known: KnownEvents = Field(
        default_factory=KnownEvents,
        description="what is known of `history`, for a model that reads it; what is left out is missing",
    )
    profile: dict[Text, FieldValue] = Field(
        default_factory=dict,
        description="static column of the user -> value, likewise; a value never seen counts as unknown",
    )
    wish: dict[Text, FiniteFloat] = Field(
        default_factory=dict,
        description="feedback column -> return that is wished for, of a model that was trained with returns",
    )
    k: PositiveCount = Field(10, description="items to return")
    beams: PositiveCount | None = Field(
        None,
        description="prefixes kept in the search, at least k; the bundle's own number where not given, or k if more",
    )
    exclude: list[ItemId] = Field(default_factory=list, description="ids that may not be returned")
    exclude_seen: StrictBool = Field(True, description="leave out every item of the history")
    filter: ItemFilter | None = Field(None, description="return only items that pass; all where not given")
    exact: StrictBool = Field(
        False, description="return the provably best items instead of those the beams reach; slower"
    )
    select: StrictBool = Field(
        False, description="put the beams in the order of the bundle's reward model and return the first of them"
    )
    reward_weights: dict[Text, RewardWeight] = Field(
        default_factory=dict,
        description="feedback column, or `pscore` -> what one unit of its expected value is worth to `select`; the "
        "bundle's own weights where not given",
    )
    timings: StrictBool = Field(False, description="answer the milliseconds of each stage")
    explain: StrictBool = Field(False, description="answer the beams of each level; not with `exact`, which has none")

    @model_validator(mode="after")
    def _one_history(self) -> "RecommendRequest":
        if (self.user_id is None) == (self.history is None):
            found = "both" if self.history is not None else "neither"
            raise ValueError(f"expected either user_id or history, found {found}")
        return self

    @model_validator(mode="after")
    def _beams_to_explain(self) -> "RecommendRequest":
        if self.exact and self.explain:
            raise ValueError("explain: the exact search keeps no beams; ask for one of the two")
        return self

    @model_validator(mode="after")
    def _beams_to_select(self) -> "RecommendRequest":
        if self.select and (self.exact or self.explain):
            other = "exact" if self.exact else "explain"
            raise ValueError(f"select: found with {other}, which shows the search's own order; ask for one of the two")
        if self.reward_weights and not self.select:
            raise ValueError("reward_weights: found without select, which they are for; ask for it too")
        return self


class RecommendBatchRequest(BaseModel):
    """Several requests, answered together."""

    model_config = ConfigDict(extra="forbid")

    requests: list[RecommendRequest] = Field(min_length=1)


class Event(BaseModel):
    """A user met an item."""

    model_config = ConfigDict(extra="forbid")

    user_id: UserId
    item_id: ItemId
    timestamp: FiniteFloat | None = Field(
        None, description="Unix seconds, which a model may read; the server's time where not given"
    )


class EventsRequest(BaseModel):
    """Events to append to histories, all or none."""

    model_config = ConfigDict(extra="forbid")

    events: list[Event] = Field(min_length=1)


class EventsResponse(BaseModel):
    """The events are stored and will survive a restart."""

    stored: int


@dataclass(slots=True)
class RecommendedItem:
    """One place of the list."""

    id: Annotated[str | int, Field(description="the catalogue's own key")]
    score: Annotated[
        float,
        Field(
            description="log-probability of the semantic ID, or with `select` what set the order; compares items of "
            "one answer only"
        ),
    ]
    semantic_id: list[int]
    title: str


class StageMilliseconds(BaseModel):
    """Time spent in each stage."""

    history: float = Field(0.0, description="reading what is stored of the user")
    wait: float = Field(0.0, description="in line, and until the batch was answered")
    encode: float = Field(description="of the batch that the request was in")
    search: float = Field(description="likewise")


class BeamLevel(BaseModel):
    """The prefixes that a search kept on one level, best first: a tree, level by level."""

    codes: list[int] = Field(description="the last code of each prefix")
    parents: list[int] = Field(description="place, on the level above, of the prefix it continues; 0 on the first")
    scores: list[float] = Field(description="log-probability of each prefix")


@dataclass(slots=True, kw_only=True)
class RecommendResponse:
    """The best items, best first; fewer than k only where fewer are allowed."""

    items: list[RecommendedItem]
    bundle: Annotated[str, Field(description="content hash of the bundle that answered")]
    beams: Annotated[int, Field(description="prefixes kept in the search")]
    expansions: Annotated[
        int | None, Field(description="prefixes that the exact search read, where `exact` asked for it")
    ] = None
    history_items_read: Annotated[int, Field(description="newest items of the history that the model read")]
    history_items_unknown: Annotated[
        int | None,
        Field(description="stored items that the catalogue no longer has, where there are any; they were passed over"),
    ] = None
    milliseconds: Annotated[StageMilliseconds | None, Field(description="where `timings` asked for it")] = None
    levels: Annotated[list[BeamLevel] | None, Field(description="where `explain` asked for it")] = None


@dataclass(slots=True)
class RecommendBatchResponse:
    """One answer a request, in their order."""

    responses: list[RecommendResponse]


class ItemRequest(BaseModel):
    """An item to add, or to change; what is left out stays as it was."""

    model_config = ConfigDict(extra="forbid")

    fields: dict[Text, FieldValue] = Field(
        default={}, description="column -> value: the text that tells where a new item belongs, and categories"
    )
    vector: Annotated[list[FiniteFloat], Field(min_length=1)] | None = Field(
        None, description="ready vector of a new item, where the tokenizer was fitted on such"
    )


class CatalogueItem(BaseModel):
    """An item as the server has it."""

    id: str | int
    title: str
    semantic_id: list[int]
    available: bool = Field(description="whether it may be returned")
    fields: dict[str, Any] = Field(description="column -> value")


class ChangedItem(CatalogueItem):
    """An item after a change, which is stored and holds for every request sent from now on."""

    change: Literal["added", "restored", "updated", "removed"]


class CatalogueItems(BaseModel):
    """Some items of the catalogue."""

    items: list[CatalogueItem]


class Users(BaseModel):
    """Users with stored events, those of the newest first."""

    users: list[str]


class UserHistory(BaseModel):
    """What is stored of one user."""

    user_id: str
    items: list[CatalogueItem] = Field(description="newest items that the catalogue knows, oldest first")


class BundleRequest(BaseModel):
    """A bundle to serve from now on."""

    model_config = ConfigDict(extra="forbid")

    folder: StrictStr = Field(description="folder of the bundle on the server's machine")


class Health(BaseModel):
    """The process answers."""

    status: str = "ok"


class Readiness(BaseModel):
    """What is being served."""

    status: str = "ready"
    run: str = Field(description="name of the run that the bundle was made by")
    bundle: str = Field(description="content hash of the bundle")
    num_items: int


class ErrorResponse(BaseModel):
    """Why a request was refused."""

    reason: str
