"""`python -m tokenizer fit | assign | report`."""

import argparse
import difflib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from tokenizer.artifacts import MANIFEST_NAME, Manifest, hash_file, hash_settings
from tokenizer.config import TokenizerSettings
from tokenizer.errors import ConfigError, DataError, OneRecError
from tokenizer.settings import apply_override, build_settings, read_yaml

_SECTION = "tokenizer"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, 2 for an error explained on stderr."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        arguments.command(arguments)
    except OneRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the last finished tokenizer is whole. Run the same command again.", file=sys.stderr)
        return 130
    return 0


def load_section(config: Path | None, overrides: Sequence[str]) -> TokenizerSettings:
    """The `tokenizer:` section of a run's YAML; the other sections are other programs' business.

    Raises:
        ConfigError: an unknown key, a bad value, a section that looks like a misspelt `tokenizer`, an override of
            another section.
    """
    tree = read_yaml(config) if config is not None else {}
    for override in overrides:
        if not override.startswith(f"{_SECTION}."):
            raise ConfigError(f"--set {override!r}: expected a key of the tokenizer, such as {_SECTION}.seed=1.")
        apply_override(tree, override)
    misspelt = difflib.get_close_matches(_SECTION, [str(key) for key in tree], n=1, cutoff=0.8)
    if _SECTION not in tree and misspelt:
        raise ConfigError(f"{config}: unknown key {misspelt[0]!r}. Did you mean {_SECTION!r}?")
    section = tree.get(_SECTION) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{config}: {_SECTION} holds {type(section).__name__}, expected a mapping of settings.")
    return build_settings(TokenizerSettings, section, f"{config or 'the defaults'}, section {_SECTION}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tokenizer", description="Items -> vectors -> semantic IDs.")
    commands = parser.add_subparsers(required=True, metavar="fit | assign | report")
    fit = commands.add_parser("fit", help="fit vectors, codebooks and the ID table")
    fit.add_argument("--config", type=Path, help="YAML of a run; its section `tokenizer` is used")
    fit.add_argument("--set", action="append", default=[], metavar="tokenizer.KEY=VALUE", help="change one setting")
    fit.add_argument("--items", type=Path, required=True, help="Parquet table of items with the column item_id")
    fit.add_argument("--sequences", type=Path, required=True, help="prepared events/ folder; training rows are used")
    fit.add_argument("--out", type=Path, required=True, help="folder of the tokenizer")
    fit.set_defaults(command=_fit)
    assign = commands.add_parser("assign", help="give new items semantic IDs; those that have one keep it")
    assign.add_argument("--tokenizer", type=Path, required=True, help="folder that `fit` wrote")
    assign.add_argument(
        "--items", type=Path, required=True, help="Parquet table with the new items (old ones may be in)"
    )
    assign.add_argument("--out", type=Path, required=True, help="folder of the extended tokenizer")
    assign.set_defaults(command=_assign)
    report = commands.add_parser("report", help="show the report of a fitted tokenizer")
    report.add_argument("--tokenizer", type=Path, required=True, help="folder that `fit` or `assign` wrote")
    report.set_defaults(command=_report)
    return parser


def _fit(arguments: argparse.Namespace) -> None:
    from tokenizer.fit import fit_tokenizer
    from tokenizer.sequences import Sequences

    settings = load_section(arguments.config, arguments.set)
    items = _read_items(arguments.items)
    sequences = Sequences.load_training(arguments.sequences)
    inputs = _hash_inputs(arguments.items, arguments.sequences)
    columns = _schema_text_columns(arguments.items.parent)
    fit_tokenizer(items, sequences, settings, arguments.out, inputs, hash_settings(settings), columns)
    _show(arguments.out)


def _assign(arguments: argparse.Namespace) -> None:
    from tokenizer.assignment import assign_items

    items = _read_items(arguments.items)
    assign_items(arguments.tokenizer, items, arguments.out, {"items": hash_file(arguments.items)})
    _show(arguments.out)


def _report(arguments: argparse.Namespace) -> None:
    _show(arguments.tokenizer)


def _show(folder: Path) -> None:
    from tokenizer.artifacts import read_manifest
    from tokenizer.report import Report, summarise

    read_manifest(folder, _SECTION)
    print(summarise(Report.model_validate_json((folder / "report.json").read_text(encoding="utf-8"))))
    print(f"plots: {folder / 'report.html'}")


def _read_items(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: cannot read the items ({error}); expected a Parquet table.") from error


def _schema_text_columns(folder: Path) -> list[str]:
    """Text columns of the prepared data that the items belong to; none where there is no schema."""
    path = folder / "schema.json"
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["text_columns"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged schema ({error}). Prepare the data again.") from error


def _hash_inputs(items: Path, sequences: Path) -> dict[str, str]:
    """The data artefact's hash where the items lie in one, else the hashes of the files read."""
    manifest = items.parent / MANIFEST_NAME
    if manifest.is_file() and sequences.resolve().parent == items.resolve().parent:
        return {"data": Manifest.model_validate_json(manifest.read_text(encoding="utf-8")).content_hash}
    names = ("offsets", "items", "splits")
    return {"items": hash_file(items), **{name: hash_file(sequences / f"{name}.npy") for name in names}}


if __name__ == "__main__":
    sys.exit(main())
