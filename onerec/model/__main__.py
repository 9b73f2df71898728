"""`python -m onerec.model [PRESET ...] [--yaml]`: what the papers' model sizes weigh, or their sections of a config."""

import argparse
import sys
from collections.abc import Iterable, Sequence

import yaml

from onerec.errors import ConfigError
from onerec.model.flops import forward_flops, training_flops
from onerec.model.presets import PRESETS, Preset, count_parameters

_HEADINGS = ("preset", "parameters", "active", "tables", "positions", "GFLOPs forward", "GFLOPs training", "source")


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of the named presets (all without a name); 0 on success, 1 after an error that is printed."""
    parser = argparse.ArgumentParser(prog="python -m onerec.model", description=__doc__)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"any of {', '.join(PRESETS)}")
    parser.add_argument("--yaml", action="store_true", help="print one preset as the sections of a run's config")
    arguments = parser.parse_args(argv)
    try:
        chosen = _find(arguments.presets)
        print(_sections(chosen) if arguments.yaml else _table(chosen))
    except ConfigError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _find(names: Sequence[str]) -> dict[str, Preset]:
    unknown = [name for name in names if name not in PRESETS]
    if unknown:
        raise ConfigError(f"preset: found {', '.join(unknown)}, expected any of {', '.join(PRESETS)}.")
    return {name: PRESETS[name] for name in names} if names else PRESETS


def _sections(chosen: dict[str, Preset]) -> str:
    if len(chosen) != 1:
        raise ConfigError(f"--yaml: found {len(chosen)} presets, expected one. Name it.")
    ((name, preset),) = chosen.items()
    sections = yaml.safe_dump(preset.run_sections(), sort_keys=False)
    return f"# {name}: {preset.source}\n{sections}".rstrip()


def _table(chosen: dict[str, Preset]) -> str:
    """One line a preset; FLOPs are those of one target with its whole context."""
    rows = [_HEADINGS, *(_row(name, preset) for name, preset in chosen.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return "\n".join(_line(row, widths) for row in rows)


def _row(name: str, preset: Preset) -> tuple[str, ...]:
    config = preset.configuration()
    count, positions = count_parameters(config), config.max_history_items + 1
    flops = [count_flops(config, positions, 1, positions) / 1e9 for count_flops in (forward_flops, training_flops)]
    millions = [f"{number / 1e6:.1f}M" for number in (count.total, count.active, count.tables)]
    return name, *millions, str(positions), *(f"{gigas:.2f}" for gigas in flops), preset.source


def _line(cells: Iterable[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


if __name__ == "__main__":
    sys.exit(main())
