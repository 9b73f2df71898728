"""The stream section of a run's config."""

from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from tokenizer.settings import Settings


class StreamSettings(Settings):
    """How the log becomes partitions, and how the model trains on each."""

    start: datetime | None = Field(
        None,
        description="first moment of the stream, UTC without a zone; what is older is the base. None: by base_share",
    )
    base_share: float = Field(
        0.5, gt=0, lt=1, description="share of events in the base, cut at the midnight (UTC) before it is reached"
    )
    partition_days: PositiveFloat = Field(1.0, description="length of a partition")
    max_partitions: PositiveInt | None = Field(None, description="stream so many partitions, oldest first; None: all")
    partitions: Path | None = Field(
        None,
        description="ready partitions instead of a cut: folders of events.parquet and, with new items, items.parquet, "
        "taken in the order of their names; the base is then the whole run",
    )
    epochs: PositiveInt = Field(1, description="passes over the new targets of a partition")
    learning_rate: PositiveFloat = Field(5e-4, description="constant rate of every partition")
    warmup_steps: int = Field(
        20, ge=0, description="steps of linear warm-up on a partition without moments, such as the first"
    )
    keep_moments: bool = Field(True, description="carry the optimizer's state from one partition to the next")

    @field_validator("start")
    @classmethod
    def _in_utc(cls, moment: datetime | None) -> datetime | None:
        return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)

    @model_validator(mode="after")
    def _one_origin(self) -> "StreamSettings":
        if self.partitions is not None and self.start is not None:
            raise ValueError(
                "start says where to cut the run's own log, and partitions are cut already; leave one of them out"
            )
        return self
