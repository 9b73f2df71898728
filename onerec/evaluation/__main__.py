"""`python -m onerec.evaluation RUN RUN ... --out FOLDER`: runs that differ in their seed, as means with their spread.

Writes metrics.json and report.html as a single run has them, and prints the tables.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onerec.config import RunConfig
from onerec.errors import ArtifactError, ConfigError, OneRecError
from onerec.evaluation.report import ReportContents, write_report
from onerec.evaluation.results import Results, Run, summarize_runs, write_results
from onerec.evaluation.runs import ARTIFACT_KIND, load_run
from onerec.evaluation.tables import print_results
from onerec.stored_config import describe_differences
from tokenizer.artifacts import MANIFEST_NAME, read_manifest, require_same_hash
from tokenizer.settings import dump_yaml, load_settings

_FIRST = "onerec"  # comes first in tables and is compared with the others


@dataclass(frozen=True)
class _Evaluated:
    """A run's folder as far as it was evaluated."""

    folder: Path
    config: RunConfig
    dataset: str
    data_hash: str
    runs: dict[str, Run]


def main(argv: Sequence[str] | None = None) -> int:
    """Summarise the runs; 1 after an error that is printed."""
    parser = argparse.ArgumentParser(prog="python -m onerec.evaluation", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of evaluated runs, such as runs/a")
    parser.add_argument("--out", type=Path, required=True, help="folder of metrics.json and report.html")
    arguments = parser.parse_args(argv)
    try:
        results, config = summarize_folders(arguments.runs)
        write_results(arguments.out / "metrics.json", results)
        title = f"OneRec on {results.dataset}"
        write_report(arguments.out / "report.html", ReportContents(title, results, config_yaml=dump_yaml(config)))
    except OneRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_results(results)
    return 0


def summarize_folders(folders: Sequence[Path]) -> tuple[Results, RunConfig]:
    """Every recommender of these runs over their seeds, and the config of the first run.

    Raises:
        ArtifactError: a run that is not evaluated, or on other data.
        ConfigError: runs of one seed, or whose configs differ in more than name and seed.
        DataError: runs that were evaluated on different targets.
    """
    evaluated = [_read_folder(folder) for folder in folders]
    first = evaluated[0]
    for other in evaluated[1:]:
        _require_same_experiment(first, other)
    seeds = [run.config.seed for run in evaluated]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"found the seeds {', '.join(map(str, seeds))}, expected a different one in each run. "
            "Train with --set seed=… and a name of its own."
        )
    runs: dict[str, Sequence[Run]] = {name: [run.runs[name] for run in evaluated] for name in first.runs}
    return summarize_runs(runs, first.dataset, first.config.evaluation), first.config


def _read_folder(folder: Path) -> _Evaluated:
    config = load_settings(RunConfig, folder / "config.yaml")
    data = read_manifest(folder / "data", "data", verify_files=False)
    names = sorted(path.parent.name for path in (folder / "evaluations").glob(f"*/{MANIFEST_NAME}"))
    if _FIRST not in names:
        raise ArtifactError(f"{folder}: found no evaluation of {_FIRST}. Run this run's stage evaluate first.")
    runs = {name: load_run(folder / "evaluations" / name) for name in sorted(names, key=lambda name: name != _FIRST)}
    for name in names:
        inputs = read_manifest(folder / "evaluations" / name, ARTIFACT_KIND, verify_files=False).inputs
        require_same_hash(f"{folder}: the data of {name}", inputs["data"], data.content_hash, "Evaluate again.")
    return _Evaluated(folder, config, data.details["source"], data.content_hash, runs)


def _require_same_experiment(first: _Evaluated, other: _Evaluated) -> None:
    expected, found = (run.config.model_dump(mode="json", exclude={"name", "seed"}) for run in (first, other))
    differences = describe_differences(found, expected)
    if differences:
        raise ConfigError(
            f"{other.folder} and {first.folder} differ in more than name and seed ({differences}). "
            "Give runs of one config."
        )
    require_same_hash(f"{other.folder}: its data", other.data_hash, first.data_hash, f"Those of {first.folder} differ.")
    if other.runs.keys() != first.runs.keys():
        raise ArtifactError(
            f"{other.folder}: found evaluations of {', '.join(other.runs)}, expected {', '.join(first.runs)} as in "
            f"{first.folder}. Run the stage evaluate of both."
        )


if __name__ == "__main__":
    sys.exit(main())
