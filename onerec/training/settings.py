"""The training section of a run's config."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from onerec.data.target_settings import TargetSettings
from tokenizer.settings import Settings


class TeacherSettings(Settings):
    """A bigger model of the same ID table, whose distributions train auxiliary heads."""

    path: Path = Field(description="folder of a run, of its pre-trained model, or a bundle")
    weight: PositiveFloat = Field(1.0, description="of the heads' loss")
    temperature: PositiveFloat = Field(1.0, description="which softens the distributions of both sides")


class TrainingSettings(Settings):
    """How long, how fast and with what the model is pre-trained."""

    epochs: PositiveInt = Field(20, description="passes over the training targets")
    max_positions_per_step: PositiveInt = Field(2048, description="history positions of a step, over all processes")
    accumulation_steps: PositiveInt = Field(
        1, description="parts a step's windows are worked through in: less memory, the same gradient"
    )
    targets: TargetSettings = Field(TargetSettings(), description="which events are to be predicted")
    teacher: TeacherSettings | None = Field(None, description="a bigger model to learn from; None: from events alone")
    learning_rate: PositiveFloat = Field(1e-3, description="peak learning rate of AdamW and Muon")
    id_head_learning_rate: PositiveFloat = Field(
        3e-3, description="the same of heads over item ids, which have so many steps to learn in as the rest"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="of the rate after the warm-up")
    warmup_steps: int = Field(200, ge=0, description="steps of linear warm-up")
    final_learning_rate_share: float = Field(
        0.05, ge=0, le=1, description="end of the cosine or the line, as share of the peak"
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the matrices of the blocks, AdamW for embeddings, heads and norms"
    )
    sparse_tables: bool = Field(
        False, description="update only the rows of the item table that a step has read; needs model.item_head_weight 0"
    )
    weight_decay: float = Field(0.01, ge=0, description="decoupled, on matrices and embeddings")
    adam_beta2: float = Field(0.98, gt=0, lt=1, description="decay of the second moment")
    max_gradient_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this norm")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="validate and keep a moving average of the weights with this decay; None: off"
    )
    evaluate_every_epochs: PositiveInt = Field(5, description="epochs between validations, each with a checkpoint")
    validation_users: PositiveInt | None = Field(None, description="seeded sample of users to validate on; None: all")
    selection_metric: str = Field("ndcg@10", description="validation metric that picks the weights to keep")
    checkpoint_steps: PositiveInt | None = Field(None, description="steps between further checkpoints; None: none")
    logging_steps: PositiveInt = Field(50, description="steps between lines of the log")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of matrix products; auto: bfloat16 where the hardware multiplies it, weights in float32"
    )
    activation_checkpointing: bool = Field(
        False, description="compute the blocks again in the backward pass instead of storing their activations"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="what DeepSpeed shards: 1 optimizer, 2 gradients too, 3 weights too; 0: plain data parallelism"
    )

    @model_validator(mode="after")
    def _sharding_allows_it(self) -> "TrainingSettings":
        if self.zero_stage and self.optimizer == "muon":
            raise ValueError("optimizer 'muon' needs whole matrices and ZeRO cuts them up; set zero_stage to 0")
        if self.zero_stage and self.sparse_tables:
            raise ValueError("sparse_tables needs gradients that ZeRO makes dense; set zero_stage to 0")
        return self
