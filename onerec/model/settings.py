"""The model section of a run's config."""

from pydantic import Field, PositiveInt, model_validator

from onerec.model.configuration import Activation, ContextKind, OneRecConfig, Positions
from tokenizer.settings import Settings


class ModelSettings(Settings):
    """Shape and regularisation of the encoder-decoder; codes and items come from the ID table."""

    d_model: PositiveInt = Field(128, description="width (TIGER and the report's smallest model: 128)")
    num_heads: PositiveInt = Field(4, description="attention heads (the report's 0.015B model: 4)")
    head_dim: PositiveInt | None = Field(None, description="width of a head; None for d_model / num_heads")
    d_ff: PositiveInt = Field(512, description="inner width of the feed-forward")
    num_context_layers: PositiveInt = Field(2, description="blocks of the context encoder")
    num_decoder_layers: PositiveInt = Field(2, description="blocks of the decoder")
    context: ContextKind = Field("causal", description="causal: every position a target; bidirectional: the report's")
    activation: Activation = Field("gelu", description="of the feed-forward")
    max_history_items: PositiveInt = Field(50, description="newest items of a history that are read")
    positions: Positions = Field("from_start", description="which item has position 0, the oldest read or the newest")
    item_embedding: bool = Field(True, description="an own vector for each item beside its codes, in the context")
    item_head_weight: float = Field(1.0, ge=0, description="loss weight of the auxiliary softmax over items; 0: none")
    item_distillation: float = Field(
        0.0, ge=0, le=1, description="share of each code's target taken from the item head's distribution"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability spread over a level's other codes")
    dropout: float = Field(0.2, ge=0, lt=1, description="share of activations dropped in training, in 256ths")
    item_dropout: float = Field(0.0, ge=0, lt=1, description="share of history items dropped in training")

    @model_validator(mode="after")
    def _teacher_exists(self) -> "ModelSettings":
        if self.item_distillation and not self.item_head_weight:
            raise ValueError("item_distillation needs the item head; set item_head_weight above 0")
        return self

    def configuration(self, codes_per_level: tuple[int, ...], num_items: int) -> OneRecConfig:
        """The model's configuration for an ID table of `num_items` rows."""
        return OneRecConfig(codes_per_level=codes_per_level, num_items=num_items, **self.model_dump())
