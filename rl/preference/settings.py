"""The reward section of a run's config: what the reward model predicts, its shape, and how it is trained."""

from typing import Literal

from pydantic import Field, FiniteFloat, PositiveFloat, PositiveInt, model_validator

from tokenizer.settings import Settings

BackboneKind = Literal["attention", "mixer", "stack"]


class FeedbackTowerSettings(Settings):
    """Which feedback the reward model predicts, and what of it is good."""

    columns: tuple[str, ...] | Literal["auto"] = Field(
        "auto", description="feedback columns with a tower; auto: all that vary and are no fact about the item"
    )
    left_out: tuple[str, ...] = Field(("propensity",), description="auto: columns that no user has caused")
    negative: tuple[str, ...] = Field(
        ("skip", "hate", "is_hate", "dislike", "report"),
        description="columns by which users say no, where the data have them: the P-Score takes their absence as good",
    )
    good_from: dict[str, FiniteFloat] = Field(
        {}, description="seconds and ratings: the least value that is good; not named: the training median"
    )
    pscore_weights: dict[str, PositiveFloat] = Field(
        {}, description="weight of each column's loss in training the P-Score; not named: 1"
    )
    sampled_negatives: int = Field(
        0, ge=0, description="random items beside every event, told apart by a tower `chosen`: for logs without a no"
    )


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
    """Selection among the beams of the pre-trained model, measured where there is one."""

    weights: dict[str, FiniteFloat] = Field(
        {"pscore": 1.0}, min_length=1, description="tower, or pscore -> weight of its expected value"
    )
    share: float = Field(
        1.0, ge=0, le=1, description="of the reward in the mixture with the generator; 1: reward alone"
    )


class RewardModelSettings(Settings):
    """The stage that trains the reward model on the run's training events, the latest held out."""

    towers: FeedbackTowerSettings = FeedbackTowerSettings()
    backbone: BackboneSettings = BackboneSettings()
    tower_width: PositiveInt = Field(32, description="hidden width of a tower, and of the fusion")
    watch_time: WatchTimeSettings = WatchTimeSettings()
    validation_share: float = Field(0.1, gt=0, lt=0.5, description="training events before those tested, to stop by")
    test_share: float = Field(0.1, gt=0, lt=0.5, description="the latest training events, which only the report reads")
    epochs: PositiveInt = Field(10, description="at most so many passes")
    patience: PositiveInt = Field(2, description="passes without a lower validation loss before training stops")
    examples_per_step: PositiveInt = Field(256, description="events of a step")
    learning_rate: PositiveFloat = Field(1e-3, description="of AdamW, constant")
    weight_decay: float = Field(0.01, ge=0, description="decoupled, on all weights")
    selection: SelectionSettings = SelectionSettings()
