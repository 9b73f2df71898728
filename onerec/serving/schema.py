"""What the endpoint reads and answers: the types of its OpenAPI document."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictBool, StrictInt, StrictStr, model_validator

ItemId = StrictStr | StrictInt
PositiveCount = Annotated[StrictInt, Field(ge=1)]


class RecommendRequest(BaseModel):
    """One user's history and what is asked for."""

    model_config = ConfigDict(extra="forbid")

    user_id: ItemId | None = Field(None, description="user whose stored events are the history; this or `history`")
    history: list[ItemId] | None = Field(
        None, description="ids of the catalogue, oldest first; empty for a user without history; this or `user_id`"
    )
    k: PositiveCount = Field(10, description="items to return")
    beams: PositiveCount | None = Field(
        None,
        description="prefixes kept in the search, at least k; the bundle's own number where not given, or k if more",
    )
    exclude: list[ItemId] = Field(default=[], description="ids that may not be returned")
    exclude_seen: StrictBool = Field(True, description="leave out every item of the history")
    exact: StrictBool = Field(
        False, description="return the provably best items instead of those the beams reach; slower"
    )
    timings: StrictBool = Field(False, description="answer the milliseconds of each stage")

    @model_validator(mode="after")
    def _one_history(self) -> "RecommendRequest":
        if (self.user_id is None) == (self.history is None):
            found = "both" if self.history is not None else "neither"
            raise ValueError(f"expected either user_id or history, found {found}")
        return self


class RecommendBatchRequest(BaseModel):
    """Several requests, answered together."""

    model_config = ConfigDict(extra="forbid")

    requests: list[RecommendRequest] = Field(min_length=1)


class Event(BaseModel):
    """A user met an item."""

    model_config = ConfigDict(extra="forbid")

    user_id: ItemId
    item_id: ItemId
    timestamp: FiniteFloat | None = Field(None, description="Unix seconds; the server's time where not given")


class EventsRequest(BaseModel):
    """Events to append to histories, all or none."""

    model_config = ConfigDict(extra="forbid")

    events: list[Event] = Field(min_length=1)


class EventsResponse(BaseModel):
    """The events are stored and will survive a restart."""

    stored: int


class RecommendedItem(BaseModel):
    """One place of the list."""

    id: str | int = Field(description="the catalogue's own key")
    score: float = Field(description="log-probability of the semantic ID; compares items of one answer only")
    semantic_id: list[int]
    title: str


class StageMilliseconds(BaseModel):
    """Time spent in each stage."""

    encode: float = Field(description="of the batch that the request was in")
    search: float = Field(description="likewise")


class RecommendResponse(BaseModel):
    """The best items, best first; fewer than k only where fewer are allowed."""

    items: list[RecommendedItem]
    bundle: str = Field(description="content hash of the bundle that answered")
    beams: int = Field(description="prefixes kept in the search")
    expansions: int | None = Field(None, description="prefixes that the exact search read, where `exact` asked for it")
    history_items_read: int = Field(description="newest items of the history that the model read")
    history_items_unknown: int | None = Field(
        None, description="stored items that the catalogue no longer has, where there are any; they were passed over"
    )
    milliseconds: StageMilliseconds | None = Field(None, description="where `timings` asked for it")


class RecommendBatchResponse(BaseModel):
    """One answer a request, in their order."""

    responses: list[RecommendResponse]


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
