"""The scaling section of a run's config."""

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from tokenizer.settings import Settings


class SizeSettings(Settings):
    """One size of the ladder; whatever else shapes a model is the run's."""

    d_model: PositiveInt = Field(description="width; the feed-forward is 4 times as wide")
    num_layers: PositiveInt = Field(2, description="blocks of the decoder, and as many of the context encoder")
    num_heads: PositiveInt = Field(2, description="attention heads")
    learning_rate: PositiveFloat | None = Field(None, description="peak rate; None: the run's training.learning_rate")

    @property
    def name(self) -> str:
        """What to call it: `d64-l2`."""
        return f"d{self.d_model}-l{self.num_layers}"


class RecipeSettings(Settings):
    """The run's own recipe in further sizes and on parts of its data, measured by the evaluator."""

    widths: tuple[int, ...] = Field(
        (2, 4),
        description="times the run's width, feed-forward and heads, each trained on all data: about 4 and 16 times "
        "the parameters, tables of items left out",
    )
    divide_learning_rate: bool = Field(False, description="by the same number")
    shares: tuple[float, ...] = Field(
        (0.1, 0.3), description="of the users, whose training events are all that is fitted to; in the run's own width"
    )

    @field_validator("widths")
    @classmethod
    def _multiples(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if any(times < 2 for times in widths) or len(set(widths)) < len(widths):
            raise ValueError(
                f"widths: found {list(widths)}, expected whole numbers from 2, each once; 1 is always there"
            )
        return widths

    @field_validator("shares")
    @classmethod
    def _parts(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < share < 1 for share in shares) or len(set(shares)) < len(shares):
            raise ValueError(f"shares: found {list(shares)}, expected parts of 1, each once; 1 itself is always there")
        return shares


class ScalingSettings(Settings):
    """A grid of sizes and compute budgets, and how a law is fitted to the losses."""

    sizes: tuple[SizeSettings, ...] = Field(
        (
            SizeSettings(d_model=16),
            SizeSettings(d_model=32),
            SizeSettings(d_model=64, num_heads=4),
            SizeSettings(d_model=128, num_heads=4),
        ),
        description="the ladder",
    )
    budgets: tuple[PositiveFloat, ...] = Field(
        (3e11, 1e12, 3e12), description="training FLOPs of each run of a size, counted as onerec/model/flops.py counts"
    )
    max_epochs: PositiveInt = Field(
        4, description="a budget that would go over the data more often than that is left out: repeated data is no new"
    )
    huber_delta: PositiveFloat = Field(1e-3, description="of the fit's loss in log space (arXiv 2203.15556: 1e-3)")
    bootstrap_samples: PositiveInt = Field(100, description="resamplings of the runs behind an interval")
    confidence: float = Field(0.9, gt=0, lt=1, description="confidence level of the intervals")
    validation_targets: PositiveInt | None = Field(
        None, description="seeded sample of validation events that the loss is taken on; None: all"
    )
    recipe: RecipeSettings | None = Field(
        None, description="in place of the ladder the run's recipe, wider and on parts of its data; {} for the defaults"
    )

    @field_validator("sizes")
    @classmethod
    def _distinct(cls, sizes: tuple[SizeSettings, ...]) -> tuple[SizeSettings, ...]:
        names = [size.name for size in sizes]
        if len(set(names)) != len(names):
            raise ValueError(f"sizes: found {', '.join(names)}, expected each width and depth once")
        return sizes

    @model_validator(mode="after")
    def _enough_points(self) -> "ScalingSettings":
        if not self.sizes or not self.budgets:
            raise ValueError("sizes and budgets: expected at least one of each")
        return self
