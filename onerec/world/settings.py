"""Settings of a world."""

from datetime import UTC, datetime

from pydantic import Field, model_validator

from tokenizer.settings import Settings


class WorldSettings(Settings):
    """How large a world is, how its users move, and which policy wrote its log."""

    num_users: int = Field(2_000, ge=1, description="users")
    num_items: int = Field(1_000, ge=100, description="items in the catalogue")
    num_events: int = Field(100_000, ge=1, description="exposures in the log, at least one a user")
    seed: int = Field(0, ge=0, lt=2**63, description="everything random follows from it")

    vector_width: int = Field(32, ge=4, description="width of the hidden taste space and of the items' vectors")
    num_favourites: int = Field(4, ge=1, description="topics in the mixture that is a user's taste")
    drift: float = Field(
        0.25, ge=0, description="random-walk step of the mixture's log-weights from one request to the next"
    )
    drift_memory: float = Field(
        0.97, ge=0, lt=1, description="share of a deviation from the long-term taste kept from request to request"
    )
    activity_spread: float = Field(0.8, ge=0, description="standard deviation of the log of events a user")
    zipf_exponent: float = Field(0.8, ge=0, description="popularity of the item of rank r goes as r ** -exponent")

    slate_size: int = Field(5, ge=1, description="items shown a request")
    popularity_share: float = Field(0.3, ge=0, le=1, description="exposures drawn by popularity alone")
    random_share: float = Field(0.1, ge=0, le=1, description="exposures drawn uniformly; the rest follow the taste")
    start: datetime = Field(datetime(2024, 1, 1, tzinfo=UTC), description="first moment of the log")
    period_days: float = Field(30.0, gt=0, description="length of the log; watching time comes on top")

    block_events: int = Field(
        500_000, ge=1, description="events simulated at once, whole users; changes memory, never the result"
    )

    @model_validator(mode="after")
    def _check(self) -> "WorldSettings":
        if self.popularity_share + self.random_share > 1:
            raise ValueError("popularity_share + random_share exceed 1")
        if self.num_events < self.num_users:
            raise ValueError(f"{self.num_events} events for {self.num_users} users, expected at least one a user")
        if self.start.tzinfo is None:
            raise ValueError("start has no time zone, write 2024-01-01T00:00:00Z")
        return self

    @property
    def taste_share(self) -> float:
        """Share of exposures that follow the user's taste."""
        return 1.0 - self.popularity_share - self.random_share
