"""Shape of the reward model and how it selects: the parts of the reward section that are stored with it."""

from typing import Literal

from pydantic import Field, FiniteFloat, PositiveInt, model_validator

from tokenizer.settings import Settings

BackboneKind = Literal["attention", "mixer", "stack"]


class BackboneSettings(Settings):
    """Shape of the network below the towers."""

    kind: BackboneKind = Field(
        "attention",
        description="target attention and an MLP (SIM); token mixing (RankMixer); one stack over history and item "
        "(OneTrans)",
    )
    width: PositiveInt = Field(32, description="of item and history vectors")
    num_heads: PositiveInt = Field(2, description="attention heads")
    num_layers: PositiveInt = Field(2, description="blocks of the mixer or the stack; layers of the MLP")
    hidden_width: PositiveInt = Field(64, description="inner width of MLP and feed-forwards")
    num_tokens: PositiveInt = Field(4, description="mixer: tokens that the features are split into, a divisor of width")
    max_history_items: PositiveInt = Field(50, description="newest events before an item's that are read")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of activations dropped in training")

    @model_validator(mode="after")
    def _parts_divide(self) -> "BackboneSettings":
        for name in ("num_heads", "num_tokens"):
            if self.width % getattr(self, name):
                raise ValueError(f"{name}: found {getattr(self, name)}, expected a divisor of width = {self.width}")
        return self


class WatchTimeSettings(Settings):
    """The mixture that seconds columns are modelled by (EGMN, arXiv 2508.12665)."""

    num_gaussians: PositiveInt = Field(10, description="Gaussian components beside the exponential one (EGMN: 10)")
    entropy_weight: float = Field(0.01, ge=0, description="keeps components in use; ours, in units of the likelihood")
    regression_weight: float = Field(1.0, ge=0, description="of the error of the mean, over the mean watch time; ours")


class SelectionSettings(Settings):
    """Selection among the beams of the pre-trained model, and of a bundle's that is asked for it."""

    weights: dict[str, FiniteFloat] = Field(
        {"pscore": 1.0}, min_length=1, description="tower, or pscore -> weight of its expected value"
    )
    share: float = Field(
        1.0, ge=0, le=1, description="of the reward in the mixture with the generator; 1: reward alone"
    )
