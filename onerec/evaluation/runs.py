"""Evaluated runs on disk, so that results tables and reports can be made again without ranking again."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from onerec.evaluation.evaluator import Evaluation, Targets
from onerec.evaluation.metrics import Interval
from onerec.evaluation.results import Run
from tokenizer.artifacts import (
    MANIFEST_NAME,
    atomic_folder,
    read_manifest,
    require_same_hash,
    restore_folder,
    write_manifest,
)

ARTIFACT_KIND = "evaluation"


def save_run(folder: Path, run: Run, inputs: dict[str, str], config_hash: str) -> None:
    """Write a run's evaluations, per-row ranks included, as an artefact.

    Args:
        inputs: content hashes of what was evaluated.
    """
    with atomic_folder(folder) as temporary:
        for protocol, evaluation in run.evaluations.items():
            arrays = {"ranks_R": evaluation.ranks_R, **_target_arrays(evaluation.targets)}
            np.savez(temporary / f"{protocol}.npz", allow_pickle=False, **arrays)
        plain = {protocol: _plain(evaluation) for protocol, evaluation in run.evaluations.items()}
        facts = {"minutes": run.minutes, "parameters": run.parameters, "equals_exact": run.equals_exact}
        summary = {"seed": run.seed, **facts, "evaluations": plain}
        (temporary / "run.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
        write_manifest(temporary, ARTIFACT_KIND, inputs, config_hash)


def load_run(folder: Path) -> Run:
    """Read what `save_run` wrote.

    Raises:
        ArtifactError: no such artefact, or a damaged one.
    """
    read_manifest(folder, ARTIFACT_KIND)
    summary = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    evaluations = {
        protocol: _evaluation(plain, folder / f"{protocol}.npz") for protocol, plain in summary["evaluations"].items()
    }
    equals_exact = summary.get("equals_exact", {})  # not in runs of older versions
    return Run(summary["seed"], evaluations, summary["minutes"], summary["parameters"], equals_exact)


def kept_run(folder: Path, inputs: dict[str, str], config_hash: str, make: Callable[[], Run]) -> Run:
    """The run in `folder`, made and saved now where there is none.

    Raises:
        ArtifactError: it is of other inputs or another config.
    """
    restore_folder(folder)
    if (folder / MANIFEST_NAME).is_file():
        manifest = read_manifest(folder, ARTIFACT_KIND, verify_files=False)
        remedy = f"Delete {folder} and run again, or choose another name for the run."
        for name, content_hash in inputs.items():
            require_same_hash(f"{folder}: its {name}", manifest.inputs[name], content_hash, remedy)
        require_same_hash(f"{folder}: made by other settings", manifest.config_hash, config_hash, remedy)
    else:
        save_run(folder, make(), inputs, config_hash)
    return load_run(folder)


def _target_arrays(targets: Targets) -> dict[str, np.ndarray]:
    return {name: value for name, value in vars(targets).items() if isinstance(value, np.ndarray)}


def _plain(evaluation: Evaluation) -> dict[str, object]:
    fields = {name: value for name, value in vars(evaluation).items() if name not in ("targets", "ranks_R")}
    fields["intervals"] = {name: dataclasses.asdict(interval) for name, interval in evaluation.intervals.items()}
    fields["num_available"] = evaluation.targets.num_available
    return fields


def _evaluation(plain: dict[str, object], arrays_file: Path) -> Evaluation:
    with np.load(arrays_file) as arrays:
        ranks_R = arrays["ranks_R"]
        targets = Targets(
            **{name: arrays[name] for name in arrays.files if name != "ranks_R"},
            num_available=int(str(plain["num_available"])),
        )
    intervals = plain["intervals"]
    assert isinstance(intervals, dict)
    fields = {name: value for name, value in plain.items() if name not in ("num_available", "intervals")}
    return Evaluation(
        **fields,  # type: ignore[arg-type]
        targets=targets,
        ranks_R=ranks_R,
        intervals={name: Interval(**bounds) for name, bounds in intervals.items()},
    )
