"""A run's config: one YAML, one section a room."""

from pydantic import Field, PositiveInt, model_validator

from onerec.baselines.item_knn import ItemKnnSettings
from onerec.baselines.sasrec import SasRecSettings
from onerec.baselines.tiger import TigerSettings
from onerec.data.settings import DataSettings
from onerec.data.target_settings import TargetSettings
from onerec.evaluation.metrics import metric_names
from onerec.evaluation.settings import EvaluationSettings
from onerec.model.precision import Precision
from onerec.model.settings import ModelSettings
from onerec.training.settings import TrainingSettings
from tokenizer.config import TokenizerSettings
from tokenizer.settings import Settings


class DecodingSettings(Settings):
    """Beam search as the evaluator and the server run it."""

    num_beams: PositiveInt = Field(50, description="beams of a request (GRID, MiniOneRec: 50)")
    precision: Precision = Field(
        "float32",
        description="of matrix products; bfloat16 is faster where the hardware multiplies it, scores are coarser; int8 "
        "weights take a quarter of the memory; float8 needs a GPU that multiplies it",
    )
    rescoring: float = Field(
        0.0, ge=0, description="weight of the item head's opinion of the items found, beside the beam's; 0: beam alone"
    )
    dense_candidates: int = Field(
        0, ge=0, description="items that no beam found and the item heads find likeliest, ranked with those found"
    )
    transitions: float = Field(
        0.0, ge=0, description="weight of what followed the newest items in the training log; 0: it is not looked up"
    )
    new_item_slots: int = Field(
        0, ge=0, description="items of each list, at least, that no training event holds, as far as there are; 0: any"
    )

    @property
    def asks_others(self) -> bool:
        """Whether anything beside the beams has a say in the order of a list."""
        return bool(self.rescoring or self.transitions)

    @model_validator(mode="after")
    def _candidates_are_ranked(self) -> "DecodingSettings":
        if self.dense_candidates and not self.rescoring:
            raise ValueError(
                f"dense_candidates: found {self.dense_candidates} beside rescoring 0, which gives the heads that find "
                "them no say in the order; set rescoring above 0, or dense_candidates to 0"
            )
        return self


class BaselineSettings(Settings):
    """Rivals trained and evaluated on the same data; null leaves one out."""

    popularity: bool = Field(True, description="rank every catalogue by training events")
    item_knn: ItemKnnSettings | None = ItemKnnSettings()
    sasrec: SasRecSettings | None = None
    sasrec_sampled: SasRecSettings | None = None
    tiger: TigerSettings | None = None


class RunConfig(Settings):
    """Everything a run depends on."""

    name: str = Field("run", pattern=r"^[\w.-]+$", description="the run's folder under the run root")
    seed: int = Field(0, ge=0, description="of weights, dropout and the order of batches")
    data: DataSettings = DataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    decoding: DecodingSettings = DecodingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    baselines: BaselineSettings = BaselineSettings()

    @model_validator(mode="after")
    def _selection_is_measured(self) -> "RunConfig":
        chosen, measured = self.training.selection_metric, metric_names(self.evaluation.ks)
        if chosen not in measured:
            raise ValueError(
                f"training.selection_metric: found {chosen!r}, expected one of {', '.join(measured)} (evaluation.ks)"
            )
        return self

    @model_validator(mode="after")
    def _lists_come_from_sessions(self) -> "RunConfig":
        items, sessions = self.model.session_items, self.data.sessions
        if items and sessions is None:
            raise ValueError(
                f"model.session_items: found {items} with data of single events, expected data.sessions, the rules "
                "that make lists of them; give these ({} for the defaults), or set session_items to 0"
            )
        if items and (self.training.targets != TargetSettings() or self.training.teacher is not None):
            raise ValueError(
                f"training.targets, training.teacher: found beside model.session_items {items}, whose targets are the "
                "lists of data.sessions; leave them out, or set session_items to 0"
            )
        if items and self.decoding.rescoring:
            raise ValueError(
                f"decoding.rescoring: found {self.decoding.rescoring} beside model.session_items {items}, whose lists "
                "are ranked whole, expected 0; the item head has an opinion of single items alone. Set one of the two "
                "to 0"
            )
        for key in ("new_item_slots", "transitions"):
            if items and getattr(self.decoding, key):
                raise ValueError(
                    f"decoding.{key}: found {getattr(self.decoding, key)} beside model.session_items {items}, whose "
                    "lists are decoded whole, expected 0. Set one of the two to 0"
                )
        if sessions is not None and not items:
            raise ValueError(
                "data.sessions: found with model.session_items 0, which reads single events; set session_items or "
                "leave data.sessions out"
            )
        return self
