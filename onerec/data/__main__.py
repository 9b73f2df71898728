"""`python -m onerec.data validate | prepare | sources | fetch`: tables checked and prepared from the command line."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from onerec.data.prepared import prepare_tables, validate
from onerec.data.settings import DataSettings
from onerec.data.sources import available_sources, find_source
from onerec.errors import ConfigError, OneRecError
from tokenizer.settings import apply_override, build_settings, read_yaml


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 1 after an error that is printed, 130 after Ctrl-C."""
    arguments = _build_parser().parse_args(argv)
    try:
        if arguments.command == "sources":
            _list_sources()
            return 0
        settings = read_settings(arguments)
        {"validate": _validate, "prepare": _prepare, "fetch": _fetch}[arguments.command](settings, arguments)
    except OneRecError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what has been downloaded is kept. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def read_settings(arguments: argparse.Namespace) -> DataSettings:
    """The `data` section of the config, with `--set data.key=value`, `--source` and `--from` on top.

    Raises:
        ConfigError: an unreadable config, an unknown key or a bad value.
    """
    tree = read_yaml(arguments.config) if arguments.config else {}
    for override in arguments.overrides:
        apply_override(tree, override)
    section = tree.get("data", {})
    if not isinstance(section, dict):
        raise ConfigError(f"data: found {section!r}, expected a section of settings.")
    if arguments.source:
        known = arguments.source in available_sources()
        section |= {"source": arguments.source} if known else {"source": "folder", "path": arguments.source}
    if arguments.path:
        section["path"] = arguments.path
    return build_settings(DataSettings, section, origin=str(arguments.config or "data"))


def _validate(settings: DataSettings, arguments: argparse.Namespace) -> None:
    report = validate(find_source(settings.source).load(settings), settings)
    _print_lines(report.lines())


def _prepare(settings: DataSettings, arguments: argparse.Namespace) -> None:
    source = find_source(settings.source)
    data = prepare_tables(source.load(settings), settings, arguments.out)
    details = data.manifest.details
    _print_lines(details["report"])
    print(f"{arguments.out}: {data.num_users:,} users, {data.num_items:,} items, {data.histories.num_events:,} events")
    print(f"licence: {details['licence']}")


def _fetch(settings: DataSettings, arguments: argparse.Namespace) -> None:
    source = find_source(settings.source)
    if source.fetch is None:
        raise ConfigError(f"data.source: {source.name!r} has nothing to fetch; give its files with --from PATH.")
    print(f"{source.description}\nlicence: {source.licence}\ncite: {source.citation}")
    _print_lines(str(path) for path in source.fetch(settings))


def _list_sources() -> None:
    for source in sorted(available_sources().values(), key=lambda source: source.name):
        variants = f" (data.variant: {', '.join(source.variants)})" if source.variants else ""
        print(f"{source.name}: {source.description}{variants}\n    licence: {source.licence}")


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m onerec.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("sources", help="list the data sets that can be read")
    for name, text in (
        ("validate", "check the tables and print what was found"),
        ("prepare", "check, filter, index and split them into a data artefact"),
        ("fetch", "download a public set"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--config", type=Path, help="YAML with a `data` section")
        command.add_argument("--set", dest="overrides", action="append", default=[], metavar="data.KEY=VALUE")
        command.add_argument("--source", help="a name from `sources`, or a folder or name under $ONEREC_DATA")
        command.add_argument("--from", dest="path", help="file or folder to read, in place of data.path")
        if name == "prepare":
            command.add_argument("--out", type=Path, required=True, help="folder of the artefact, such as runs/x/data")
    return parser


if __name__ == "__main__":
    sys.exit(main())
