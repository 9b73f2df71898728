"""The scaling stage: every size trained for every budget, and the law that the losses follow.

runs/<name>/scaling/  points/<size>-<budget>/point.json   what a run showed; kept, so that a ladder can be added to
                      work/                               what a stopped run goes on from
                      law.json report.html                fits with intervals, and the papers' own beside them
                      recipe/                             instead, with settings of it: see onerec/scaling/recipe.py
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers.trainer_utils import set_seed

from kernels.denormals import flushed_denormals
from onerec.data.histories import Histories
from onerec.errors import ConfigError
from onerec.model.onerec import OneRec
from onerec.pipeline import Pipeline
from onerec.plain_training import OF_THE_MODEL, require_plain
from onerec.scaling.figures import publish_figures
from onerec.scaling.ladder import (
    Plan,
    Point,
    code_loss,
    held_out_windows,
    measure,
    size_model,
    train_point,
)
from onerec.scaling.recipe import scale_recipe
from onerec.scaling.settings import ScalingSettings, SizeSettings
from onerec.training.pretraining import build_model, training_windows
from tokenizer.artifacts import (
    MANIFEST_NAME,
    atomic_folder,
    hash_settings,
    hash_text,
    read_manifest,
    require_same_hash,
    restore_folder,
    write_manifest,
)

KIND = "scaling-point"


@flushed_denormals()
def scale(pipeline: Pipeline, settings: ScalingSettings) -> None:
    """Train the points of the ladder that are not finished, fit the law and write the figures; or those of the recipe.

    Raises:
        ConfigError: an option that the ladder does not carry, or no point that the data suffice for.
        ArtifactError: a finished point of other settings, data or semantic IDs.
        DataError: no validation event to take the loss on.
    """
    require_plain(pipeline.config, "scaling", OF_THE_MODEL)
    for stage in (pipeline.prepare_data, pipeline.fit_tokenizer):
        pipeline.run_for_everyone(stage)
    if settings.recipe is not None:
        scale_recipe(pipeline, settings.recipe)
        return
    points, left_out = [], []
    for size in settings.sizes:
        for budget in settings.budgets:
            rung = _Rung(pipeline, settings, size, budget)
            point = rung.finish()
            if point is None:
                left_out.append(rung.name)
            else:
                points.append(point)
    if not points:
        raise ConfigError(
            f"scaling: every budget goes over the data more than {settings.max_epochs} times. Lower scaling.budgets."
        )
    if pipeline.processes.is_main_process:
        publish_figures(points, left_out, pipeline.folder / "scaling", settings, pipeline.console)


@dataclass(frozen=True)
class _Rung:
    """One size for one budget."""

    pipeline: Pipeline
    settings: ScalingSettings
    size: SizeSettings
    budget: float

    @property
    def name(self) -> str:
        return f"{self.size.name}-{self.budget:g}"

    def finish(self) -> Point | None:
        """What the run showed, found or trained now; None where the data do not last for the budget."""
        folder = self.pipeline.folder / "scaling" / "points" / self.name
        restore_folder(folder)
        if (folder / MANIFEST_NAME).is_file():
            return self._found(folder)
        model = self._model()
        plan = Plan.of(training_windows(self._histories, model), model.config, self.budget, self.pipeline.config.seed)
        if plan.epochs > self.settings.max_epochs:
            return None
        self.pipeline.console.rule(f"[bold]{self.name}")
        point = self._train(model, plan)
        if self.pipeline.processes.is_main_process:
            with atomic_folder(folder) as temporary:
                (temporary / "point.json").write_text(point.model_dump_json(indent=2), encoding="utf-8")
                write_manifest(temporary, KIND, self._inputs(), self._hash())
            shutil.rmtree(self._work)
        return point

    @property
    def _histories(self) -> Histories:
        return self.pipeline.data.histories

    @property
    def _work(self) -> Path:
        return self.pipeline.folder / "scaling" / "work" / f"{self.name}-{self._hash()[:12]}"

    def _model(self) -> OneRec:
        seed, settings = self.pipeline.config.seed, size_model(self.pipeline.config.model, self.size)
        set_seed(seed)
        return build_model(settings, self.pipeline.table, self.pipeline.fitted(), seed=seed)

    def _train(self, model: OneRec, plan: Plan) -> Point:
        config, seed = self.pipeline.config, self.pipeline.config.seed
        windows = held_out_windows(
            self._histories, model.config.max_history_items, self.settings.validation_targets, seed
        )
        training = config.training.model_copy(
            update={"learning_rate": self.size.learning_rate or config.training.learning_rate}
        )
        result = train_point(model, plan, training, self._work, seed, lambda each: code_loss(each, windows))
        return measure(self.size, self.budget, model.config, plan, result)

    def _found(self, folder: Path) -> Point:
        manifest = read_manifest(folder, KIND)
        remedy = "Delete it to train it again, or choose another name for the run."
        for name, content_hash in self._inputs().items():
            require_same_hash(f"{folder}: made from another {name}", manifest.inputs[name], content_hash, remedy)
        require_same_hash(f"{folder}: trained by other settings", manifest.config_hash, self._hash(), remedy)
        return Point.model_validate_json((folder / "point.json").read_text(encoding="utf-8"))

    def _inputs(self) -> dict[str, str]:
        return {"data": self.pipeline.data.manifest.content_hash, "table": self.pipeline.table.content_hash}

    def _hash(self) -> str:
        """Hash of all that a point depends on but for its data."""
        config, held_out = self.pipeline.config, self.settings.validation_targets
        own = f"{self.budget!r} {config.seed} {held_out}"
        return hash_text(hash_settings([self.size, config.model, config.training]) + own)
