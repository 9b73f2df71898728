"""The baselines of a run's config, each to be fitted when its turn comes."""

from collections.abc import Callable
from typing import TypeVar

from onerec.baselines.item_knn import ItemKnn
from onerec.baselines.popularity import Popularity
from onerec.baselines.sasrec import SasRec, SasRecSettings
from onerec.baselines.tiger import Tiger, TigerSettings
from onerec.config import RunConfig
from onerec.data.histories import Split
from onerec.data.prepared import PreparedData
from onerec.evaluation.evaluator import evaluate
from onerec.evaluation.recommender import Recommender
from tokenizer.table import SemanticIdTable

_SeededSettings = TypeVar("_SeededSettings", SasRecSettings, TigerSettings)


def baseline_fits(
    config: RunConfig, data: PreparedData, table: Callable[[], SemanticIdTable]
) -> dict[str, Callable[[], Recommender]]:
    """Name of each baseline that the config asks for -> what fits it; the table is read where one needs it."""
    chosen, histories, num_items, seed = config.baselines, data.histories, data.num_items, config.seed
    fits: dict[str, Callable[[], Recommender]] = {}
    if chosen.popularity:
        fits["popularity"] = lambda: Popularity.fit(histories, num_items)
    if (item_knn := chosen.item_knn) is not None:
        fits["item-knn"] = lambda: ItemKnn.fit(histories, num_items, item_knn)
    if (sasrec := chosen.sasrec) is not None:
        fits["sasrec"] = lambda: fit_sasrec(sasrec, config, data)
    if (sampled := chosen.sasrec_sampled) is not None:
        fits["sasrec-sampled"] = lambda: fit_sasrec(sampled, config, data)
    if (tiger := chosen.tiger) is not None:
        fits["tiger"] = lambda: Tiger.fit(histories, table(), _seeded(tiger, seed))
    return fits


def fit_sasrec(settings: SasRecSettings, config: RunConfig, data: PreparedData) -> SasRec:
    """SASRec with the weights best on the run's validation metric."""
    validation = config.evaluation.model_copy(update={"protocols": ("seen_allowed",), "bootstrap_samples": 1})

    def validate(sasrec: SasRec) -> float:
        evaluations = evaluate(sasrec, data, Split.VALIDATION, validation, show_progress=False)
        return evaluations["validation"].metrics[config.training.selection_metric]

    return SasRec.fit(data.histories, data.num_items, _seeded(settings, config.seed), validate)


def _seeded(settings: _SeededSettings, seed: int) -> _SeededSettings:
    """A baseline's settings with the run's seed on top of its own, so that runs of several seeds differ in it."""
    return settings.model_copy(update={"seed": settings.seed + seed})
