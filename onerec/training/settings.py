"""The training section of a run's config."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tokenizer.settings import Settings


class TrainingSettings(Settings):
    """How long, how fast and with what the model is pre-trained."""

    epochs: PositiveInt = Field(20, description="passes over the training targets")
    max_positions_per_step: PositiveInt = Field(2048, description="history positions of a step, over all processes")
    learning_rate: PositiveFloat = Field(1e-3, description="peak learning rate of AdamW")
    warmup_steps: int = Field(200, ge=0, description="steps of linear warm-up")
    final_learning_rate_share: float = Field(0.05, ge=0, le=1, description="end of the cosine, as share of the peak")
    weight_decay: float = Field(0.01, ge=0, description="decoupled, on matrices and embeddings")
    adam_beta2: float = Field(0.98, gt=0, lt=1, description="decay of the second moment")
    max_gradient_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this norm")
    evaluate_every_epochs: PositiveInt = Field(5, description="epochs between validations, each with a checkpoint")
    validation_users: PositiveInt | None = Field(None, description="seeded sample of users to validate on; None: all")
    selection_metric: str = Field("ndcg@10", description="validation metric that picks the weights to keep")
    checkpoint_steps: PositiveInt | None = Field(None, description="steps between further checkpoints; None: none")
    logging_steps: PositiveInt = Field(50, description="steps between lines of the log")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of matrix products; auto: bfloat16 where the hardware multiplies it, weights in float32"
    )
