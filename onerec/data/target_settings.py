"""Settings of training targets: which events are to be predicted, when, and how much each counts."""

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from tokenizer.settings import Settings


class BehaviourWeight(Settings):
    """What a feedback column says of how much an event counts as a target."""

    column: str = Field(description="feedback column of the events")
    weights: dict[float, float] = Field(
        description="least value -> weight, such as {0: 1, 4: 2}: the largest value that an event reaches counts; "
        "weight 0 is no target"
    )
    otherwise: float = Field(1.0, ge=0, description="weight of events that reach none, or without a record")

    @model_validator(mode="after")
    def _weights_are_weights(self) -> "BehaviourWeight":
        if not self.weights or min(self.weights.values()) < 0:
            raise ValueError(
                f"weights: found {self.weights}, expected at least one value and weights of 0 or more; "
                "give such as {0: 1, 4: 2}"
            )
        return self


class FutureWindow(Settings):
    """Targets from further ahead than the next event (PinFM, arXiv 2507.12704)."""

    events: PositiveInt | None = Field(None, description="of the next so many events; None: by seconds alone")
    seconds: PositiveFloat | None = Field(
        None, description="within so long after the next event; None: by events alone"
    )
    share: float = Field(
        0.5, gt=0, le=1, description="of the positions whose target is drawn from the window instead of the next event"
    )

    @model_validator(mode="after")
    def _reaches_further(self) -> "FutureWindow":
        if self.events in (None, 1) and self.seconds is None:
            raise ValueError(
                f"events: found {self.events} without seconds, expected a window beyond the next event; "
                "set events to 2 or more, or seconds"
            )
        return self


class SlidingWindows(Settings):
    """One window of each history an epoch, in turn, where histories are longer than a window (arXiv 2409.14517)."""

    newest_every: int = Field(
        0, ge=0, description="so many epochs apart all histories are read at their newest window; 0: never"
    )

    @model_validator(mode="after")
    def _slides(self) -> "SlidingWindows":
        if self.newest_every == 1:
            raise ValueError(
                "newest_every: found 1, expected 0 or at least 2: no epoch is left to slide in; "
                "to train on newest events alone, take older ones out of the data"
            )
        return self


class TargetSettings(Settings):
    """Which training events are targets; by default each is, once an epoch, of the position before it."""

    weights: tuple[BehaviourWeight, ...] = Field(
        (), description="by behaviour; the weights of several columns multiply"
    )
    future: FutureWindow | None = Field(None, description="targets from a window of the future; None: the next event")
    sliding: SlidingWindows | None = Field(
        None, description="an epoch reads one window of a long history instead of all of them; None: all"
    )
