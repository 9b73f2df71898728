"""Control without retraining: what users of the world watch when a bundle is asked for low, middle or high returns.

`python -m rl.control --bundle B [--column watch_seconds]` lets simulated users play against one bundle of a model that
was trained with `model.pathways.returns` (DT4IER, arXiv 2404.03637: wished-for returns at serving). The base is the
bundle with nothing wished; beside it every request wishes for the lowest, the middle or the highest bucket of the
column's returns. Figures, pairing and intervals are those of `rl.ab`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onerec.bundle import Bundle
from onerec.errors import ConfigError
from rl.ab import add_options, answer, contest
from rl.arena import Arena, bundle_player

NOTHING = "no wish"


def levels(bundle: Bundle, column: str | None) -> tuple[str, dict[str, float]]:
    """The column, the model's first where none is named, and a return in its lowest, middle and highest bucket.

    Raises:
        ConfigError: the model has no returns, or none of this column.
    """
    pathways = bundle.model.encoder.pathways
    specs = {} if pathways is None else {spec.name: spec for spec in pathways.spec.returns}
    if not specs or (column is not None and column not in specs):
        raise ConfigError(
            f"--column: found {column or 'none'}, expected a column whose returns the bundle was trained with "
            f"({', '.join(specs) or 'none: train with model.pathways.returns'})."
        )
    name = column or next(iter(specs))
    edges = specs[name].edges
    middle = {"mid": edges[(len(edges) - 1) // 2]} if len(edges) > 1 else {}
    return name, {"low": float(np.nextafter(edges[0], -np.inf)), **middle, "high": edges[-1]}


def run(arena: Arena, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Let the bundle play under every wish and put the figures together."""
    bundle = arena.load_bundle(folder)
    name, wishes = levels(bundle, options.column)
    players = {NOTHING: bundle_player(bundle)}
    players |= {level: bundle_player(bundle, wished={name: value}) for level, value in wishes.items()}
    return {"column": name, "wishes": wishes, **contest(arena, players, options)}


def main(argv: Sequence[str] | None = None) -> int:
    """Play and print the table; 2 where that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m rl.control", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="of a model trained with returns")
    parser.add_argument("--run", type=Path, help="the run whose world it plays in (default: the bundle's)")
    parser.add_argument("--column", help="feedback column that is wished for (default: the model's first)")
    add_options(parser)
    options = parser.parse_args(argv)
    return answer(
        options, lambda: run(Arena.open(options.run or options.bundle.resolve().parent), options.bundle, options)
    )


if __name__ == "__main__":
    sys.exit(main())
