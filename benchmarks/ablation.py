"""What each ingredient of a recipe is worth: `python -m benchmarks.ablation RUN_OR_CONFIG [--set …] [--only NAME …]`.

    python -m benchmarks.ablation configs/recipe.yaml --set data.path=amazon14_beauty --set name=beauty
    python -m benchmarks.ablation runs/demo --epochs 2 --validation-users 300 --only prefix_vectors dropout

Each ingredient is taken away from the whole recipe (`no-NAME`) and added to the plain model, which has none of them
(`with-NAME`, together with what it cannot do without). Validation, seen items allowed. Each variant is a run of its
own, runs/ablation_<name>_<variant>; what is finished is kept, so that the same command goes on after a stop and adds to
what is there. Variants share the data and, where nothing that made them differs, semantic IDs and weights: one that
only decodes otherwise decodes with the weights that the recipe's own validation picked. The table goes to
runs/ablation_<name>/ as ablation.json and ablation.md; differences are paired by user.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from kernels.memory import keep_freed_memory
from onerec.config import RunConfig
from onerec.data.histories import Split
from onerec.errors import ConfigError, OneRecError, suggest_nearest
from onerec.evaluation.evaluator import compare, evaluate
from onerec.evaluation.results import Run
from onerec.evaluation.runs import kept_run
from onerec.evaluation.settings import EvaluationSettings
from onerec.evaluation.tables import markdown_table
from onerec.pipeline import Pipeline
from onerec.training.pretraining import ARTIFACT_KIND as PRETRAIN_KIND
from tokenizer.artifacts import MANIFEST_NAME, atomic_file, hash_settings, read_manifest, write_json
from tokenizer.settings import apply_override, build_settings, read_yaml

FULL, PLAIN = "full", "plain"
_METRICS = ("recall@10", "ndcg@10")
# Folder of an artefact -> the sections that it depends on.
_MADE_BY = {
    "data": ("data",),
    "tokenizer": ("data", "tokenizer"),
    "pretrain": ("data", "tokenizer", "model", "training", "seed"),
}


@dataclass(frozen=True)
class Ingredient:
    """One part of a recipe, by the values of its keys where it is left out."""

    name: str
    off: dict[str, Any]
    needs: tuple[str, ...] = ()
    """Others that it cannot do without."""
    in_plain: bool = False
    """The plain model keeps it: something must be left."""


INGREDIENTS = (
    Ingredient("bos_reads_context", {"model.bos_reads_context": False}),
    Ingredient("prefix_vectors", {"model.prefix_vectors": False}),
    Ingredient("repeat_bias", {"model.repeat_bias": False}),
    Ingredient("item_rows", {"model.item_embedding": False}),  # codes alone are left in the context
    Ingredient("item_start", {"model.item_start": 0.0}, needs=("item_rows",)),
    Ingredient("item_head", {"model.item_head_weight": 0.0}),
    Ingredient("id_head", {"model.id_head_width": 0}, needs=("item_head",)),
    Ingredient("second_id_head", {"model.num_id_heads": 1, "model.id_head_start": 0.0}, needs=("item_head", "id_head")),
    Ingredient("item_distillation", {"model.item_distillation": 0.0}, needs=("item_head",)),
    Ingredient("path_sampling", {"model.path_sampling": 0.0}, needs=("item_head",)),
    Ingredient("rescoring", {"decoding.rescoring": 0.0}, needs=("item_head",)),
    Ingredient("dense_candidates", {"decoding.dense_candidates": 0}, needs=("item_head", "rescoring")),
    Ingredient("transitions", {"decoding.transitions": 0.0}),
    Ingredient("positions_from_end", {"model.positions": "from_start"}),
    Ingredient("dropout", {"model.dropout": 0.0}),
    Ingredient("context_dropout", {"model.context_dropout": None}, needs=("dropout",)),  # as much as elsewhere
    Ingredient("long_history", {"model.max_history_items": 20}),  # TIGER's
    Ingredient("reassigned_codes", {"tokenizer.collisions.policy": "suffix"}),  # TIGER's
    Ingredient("uneven_codes", {"tokenizer.quantizer.evening_fills": 2}),
    Ingredient("collaborative_vectors", {"tokenizer.collaborative.weight": 0.0}),
    Ingredient("text_vectors", {"tokenizer.text.weight": 0.0}, in_plain=True),
    Ingredient("wide_beam", {"decoding.num_beams": 10}),
)


@dataclass(frozen=True)
class Variant:
    """A run to be compared with another one."""

    name: str
    changes: dict[str, Any]
    """Keys of the whole recipe that differ."""
    reference: str | None
    """The variant that it is held against."""


def variants(base: RunConfig) -> list[Variant]:
    """All that the ingredients of a config give: what it has and could do without."""
    tree = base.model_dump(mode="json")
    present = [each for each in INGREDIENTS if any(_value(tree, key) != off for key, off in each.off.items())]
    present = [each for each in present if _is_config(base, _without(_with_dependents(each, present)))]
    plain = [each for each in present if not each.in_plain]
    taken = [Variant(f"no-{each.name}", _without(_with_dependents(each, present)), FULL) for each in present]
    added = [
        Variant(f"with-{each.name}", _without([one for one in plain if not _keeps(each, one)]), PLAIN) for each in plain
    ]
    return [Variant(FULL, {}, None), Variant(PLAIN, _without(plain), FULL), *taken, *added]


def choose(every: Sequence[Variant], names: Sequence[str]) -> list[Variant]:
    """The variants of these names, or of the ingredients of these names, and what they are held against.

    Raises:
        ConfigError: a name that is neither.
    """
    if not names:
        return list(every)
    by_name = {each.name: each for each in every}
    wanted: set[str] = set()
    for name in names:
        matching = {each for each in (name, f"no-{name}", f"with-{name}") if each in by_name}
        if not matching:
            raise ConfigError(f"--only: found {name!r}.{suggest_nearest(name, by_name)} Known: {', '.join(by_name)}.")
        wanted |= matching
    wanted |= {reference for name in wanted if (reference := by_name[name].reference)}
    return [each for each in every if each.name in wanted]


def variant_config(base: RunConfig, variant: Variant) -> RunConfig:
    """The variant's own config.

    Raises:
        ConfigError: the change contradicts another setting.
    """
    tree = base.model_dump(mode="json")
    for key, value in variant.changes.items():
        section, _, name = key.rpartition(".")
        _value(tree, section)[name] = value
    tree["name"] = f"ablation_{base.name}_{variant.name}"
    return build_settings(RunConfig, tree, origin=variant.name)


def measure(base: RunConfig, chosen: Sequence[Variant], root: Path, donor: Path | None) -> dict[str, Run]:
    """Train and evaluate what is not finished.

    Args:
        donor: folder of a run whose artefacts serve where they are the same.

    Raises:
        OneRecError: as the stages of a run.
    """
    donors = [] if donor is None else [(donor, build_settings(RunConfig, read_yaml(donor / "config.yaml"), str(donor)))]
    found = {}
    for variant in chosen:
        config = variant_config(base, variant)
        pipeline = Pipeline.open(config, root)
        pipeline.console.rule(f"[bold]{variant.name}")
        for folder, other in donors:
            share_artefacts(folder, other, pipeline)
        pipeline.prepare_data()
        pipeline.fit_tokenizer()
        pipeline.pretrain()
        found[variant.name] = _evaluated(pipeline)
        donors.append((pipeline.folder, config))
    return found


def share_artefacts(folder: Path, made_by: RunConfig, pipeline: Pipeline) -> None:
    """Link what another run has finished by the same settings, where this one has nothing yet."""
    for name, sections in _MADE_BY.items():
        link = pipeline.folder / name
        same = all(getattr(made_by, section) == getattr(pipeline.config, section) for section in sections)
        if same and not link.exists() and (folder / name / MANIFEST_NAME).is_file():
            link.symlink_to(os.path.relpath(folder / name, pipeline.folder), target_is_directory=True)


def _evaluated(pipeline: Pipeline) -> Run:
    config = pipeline.config
    pretrained = read_manifest(pipeline.folder / "pretrain", PRETRAIN_KIND, verify_files=False)

    def make() -> Run:
        recommender = pipeline.recommender(pipeline.model)
        evaluations = evaluate(recommender, pipeline.data, Split.VALIDATION, config.evaluation)
        minutes = float(pretrained.details["minutes"])
        return Run(config.seed, {"validation": evaluations["validation"]}, minutes, recommender.num_parameters)

    inputs = {"data": pipeline.data.manifest.content_hash, "pretrain": pretrained.content_hash}
    return kept_run(pipeline.folder / "ablation", inputs, hash_settings(config), make)


def table_of(base: RunConfig, chosen: Sequence[Variant], found: dict[str, Run]) -> list[list[str]]:
    """Headings, then a row a variant, each with its paired difference from what it is held against."""
    rows = [["variant", "R@10", "interval", "N@10", "interval", "R@10 against", "min", "parameters", "changed"]]
    for variant in chosen:
        run = found[variant.name]
        evaluation = run.evaluations["validation"]
        row = [variant.name]
        for metric in _METRICS:
            interval = evaluation.intervals[metric]
            row += [f"{evaluation.metrics[metric]:.4f}", f"{interval.low:.4f} to {interval.high:.4f}"]
        row.append(_difference(variant, found, base.evaluation))
        changed = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in variant.changes.items())
        rows.append(
            [*row, f"{run.minutes:.1f}", f"{run.parameters:,}", "all off" if variant.name == PLAIN else changed]
        )
    return rows


def figures_of(base: RunConfig, chosen: Sequence[Variant], found: dict[str, Run]) -> dict[str, Any]:
    """Everything for the JSON file."""
    plain = {
        variant.name: {
            "changes": variant.changes,
            "reference": variant.reference,
            "minutes": found[variant.name].minutes,
            "parameters": found[variant.name].parameters,
            **found[variant.name].evaluations["validation"].to_dict(),
        }
        for variant in chosen
    }
    return {"config": base.model_dump(mode="json"), "variants": plain}


def _difference(variant: Variant, found: dict[str, Run], rules: EvaluationSettings) -> str:
    if variant.reference is None:
        return ""
    own, other = (found[name].evaluations["validation"] for name in (variant.name, variant.reference))
    paired = compare(own, other, rules)[_METRICS[0]]
    return f"{variant.reference} {paired.difference:+.4f} ({paired.interval.low:+.4f} to {paired.interval.high:+.4f})"


def _is_config(base: RunConfig, changes: dict[str, Any]) -> bool:
    """Whether a config with these changes would be one; without its only item vectors, for example, it is none."""
    try:
        variant_config(base, Variant(FULL, changes, None))
    except ConfigError:
        return False
    return True


def _with_dependents(ingredient: Ingredient, present: Sequence[Ingredient]) -> list[Ingredient]:
    return [ingredient, *(each for each in present if ingredient.name in each.needs)]


def _keeps(ingredient: Ingredient, other: Ingredient) -> bool:
    """Whether an ingredient comes with another one, itself among them."""
    return other.name in (ingredient.name, *ingredient.needs)


def _without(ingredients: Sequence[Ingredient]) -> dict[str, Any]:
    return {key: value for each in ingredients for key, value in each.off.items()}


def _value(tree: dict[str, Any], key: str) -> Any:
    value: Any = tree
    for name in key.split("."):
        value = value[name]
    return value


def base_config(arguments: argparse.Namespace) -> RunConfig:
    """The whole recipe as it is to be compared: of a run or a file, cut down where told.

    Raises:
        ConfigError: a file that is no config, or a wrong value.
    """
    path: Path = arguments.base / "config.yaml" if arguments.base.is_dir() else arguments.base
    tree = {name: section for name, section in read_yaml(path).items() if name in RunConfig.model_fields}
    for override in arguments.overrides:
        apply_override(tree, override)
    config = build_settings(RunConfig, tree, str(path))
    training, users = config.training.model_dump(mode="json"), arguments.validation_users
    ks = sorted({10, int(config.training.selection_metric.partition("@")[2])})
    evaluation = config.evaluation.model_dump(mode="json") | {"ks": ks, "protocols": ["seen_allowed"]}
    if users is not None:
        evaluation["max_rows"] = users
    if arguments.epochs is not None:  # else a finished run's weights serve as they are
        every = min(config.training.evaluate_every_epochs, arguments.epochs)
        sample = users or config.training.validation_users
        training |= {"epochs": arguments.epochs, "evaluate_every_epochs": every, "validation_users": sample}
    cut = config.model_dump(mode="json") | {"training": training, "evaluation": evaluation}
    return build_settings(RunConfig, cut, str(path))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("base", type=Path, metavar="RUN_OR_CONFIG", help="folder of a run, or a config")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    parser.add_argument("--epochs", type=int, help="of every variant, where not the config's")
    parser.add_argument("--validation-users", type=int, help="evaluate a seeded sample of so many")
    names = ", ".join(each.name for each in INGREDIENTS)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"variants or ingredients: {names}")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table and write it; 1 after an error that is printed."""
    arguments = _parser().parse_args(argv)
    keep_freed_memory()
    try:
        base = base_config(arguments)
        chosen = choose(variants(base), arguments.only)
        found = measure(base, chosen, arguments.runs, arguments.base if arguments.base.is_dir() else None)
    except OneRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    table = markdown_table(table_of(base, chosen, found))
    Console(soft_wrap=True).print(table, markup=False, highlight=False)
    folder = arguments.runs / f"ablation_{base.name}"
    write_json(folder / "ablation.json", figures_of(base, chosen, found))
    with atomic_file(folder / "ablation.md") as temporary:
        temporary.write_text(table + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
