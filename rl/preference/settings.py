"""The reward section of a run's config: what the reward model predicts, its shape, and how it is trained."""

from typing import Literal

from pydantic import Field, FiniteFloat, PositiveFloat, PositiveInt

from onerec.model.preference.settings import BackboneSettings, SelectionSettings, WatchTimeSettings
from tokenizer.settings import Settings


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
