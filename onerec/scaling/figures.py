"""What a ladder shows: its points, the laws fitted to them, and the papers' own fits beside."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from onerec.errors import DataError
from onerec.evaluation.charts import Series, line_chart
from onerec.evaluation.page import Section, write_page
from onerec.scaling.ladder import Point
from onerec.scaling.law import Law, best_size, bootstrap_laws, fit_law, intervals, power_of
from onerec.scaling.published import ONEREC_V2, PUBLISHED, PublishedLaw
from onerec.scaling.settings import ScalingSettings
from tokenizer.artifacts import write_json

_CURVE_POINTS = 60
_NO_VALUE = "–"


@dataclass(frozen=True)
class Fit:
    """A law with intervals of its constants, or why there is none."""

    law: Law | None
    bounds: dict[str, tuple[float, float]]
    reason: str = ""

    @classmethod
    def of(cls, names: Sequence[str], points: Sequence[Point], settings: ScalingSettings) -> "Fit":
        """Fit L over N, D or C, each as `names` has it."""
        fields = {"N": "parameters", "D": "codes", "C": "flops"}
        sizes_RV = np.array([[getattr(point, fields[name]) for name in names] for point in points], dtype=float)
        losses_R = np.array([point.loss for point in points])
        try:
            law = fit_law(names, sizes_RV, losses_R, settings.huber_delta)
        except DataError as error:
            return cls(None, {}, str(error))
        laws = bootstrap_laws(names, sizes_RV, losses_R, settings.huber_delta, settings.bootstrap_samples)
        return cls(law, intervals(laws, settings.confidence))


@dataclass(frozen=True)
class Optimum:
    """The best size of one budget, by a parabola through its runs."""

    budget: float
    parameters: float
    codes: float


def find_optima(points: Sequence[Point]) -> list[Optimum]:
    """Of every budget whose minimum lies between its sizes; its codes are interpolated between runs in logarithms."""
    optima = []
    for budget, runs in _by_budget(points).items():
        sizes_R = np.array([point.parameters for point in runs], dtype=float)
        lowest = best_size(sizes_R, np.array([point.loss for point in runs]))
        if lowest is not None:
            codes_R = np.log([point.codes for point in runs])
            codes = float(np.exp(np.interp(np.log(lowest), np.log(sizes_R), codes_R)))
            optima.append(Optimum(budget, lowest, codes))
    return optima


def publish_figures(
    points: Sequence[Point], left_out: Sequence[str], folder: Path, settings: ScalingSettings, console: Console
) -> None:
    """Fit the laws, write law.json and report.html into `folder`, and print the points and constants."""
    points = sorted(points, key=lambda point: (point.budget, point.parameters))
    frontier = [min(runs, key=lambda point: point.loss) for runs in _by_budget(points).values()]
    fits = {"L(N, D)": Fit.of(("N", "D"), points, settings), "L(C)": Fit.of(("C",), frontier, settings)}
    optima = find_optima(points)
    budgets = [each.budget for each in optima]
    exponents = {
        "N ~ C": power_of(budgets, [each.parameters for each in optima]),
        "D ~ C": power_of(budgets, [each.codes for each in optima]),
    }
    write_json(folder / "law.json", _plain(points, left_out, fits, optima, exponents))
    table, laws = _point_rows(points), _law_rows(fits, exponents, settings)
    print_rows("Ladder", table, console)
    print_rows("Scaling laws", laws, console)
    _write_page(folder / "report.html", points, left_out, fits, (table, laws))


def _plain(
    points: Sequence[Point],
    left_out: Sequence[str],
    fits: dict[str, Fit],
    optima: Sequence[Optimum],
    exponents: dict[str, float | None],
) -> dict[str, Any]:
    return {
        "points": [point.model_dump() for point in points],
        "left_out": list(left_out),
        "laws": {
            name: {"constants": fit.law.constants(), "intervals": fit.bounds} if fit.law else {"reason": fit.reason}
            for name, fit in fits.items()
        },
        "optima": [vars(optimum) for optimum in optima],
        "exponents": exponents,
    }


def _by_budget(points: Sequence[Point]) -> dict[float, list[Point]]:
    budgets: dict[float, list[Point]] = {}
    for point in sorted(points, key=lambda each: each.parameters):
        budgets.setdefault(point.budget, []).append(point)
    return dict(sorted(budgets.items()))


def _point_rows(points: Sequence[Point]) -> list[list[str]]:
    """Headings, then a row a point."""
    rows = [["size", "budget", "FLOPs", "N", "D", "epochs", "loss", "min"]]
    for point in points:
        numbers = (point.budget, point.flops, point.parameters, point.codes)
        rows.append(
            [
                point.size,
                *(f"{n:.3g}" for n in numbers),
                f"{point.epochs:.2f}",
                f"{point.loss:.4f}",
                f"{point.minutes:.1f}",
            ]
        )
    return rows


def _law_rows(fits: dict[str, Fit], exponents: dict[str, float | None], settings: ScalingSettings) -> list[list[str]]:
    """Headings, then a row a law: ours with intervals, and the papers'."""
    rows = [["law", "E", "A_N", "alpha_N", "B_D", "beta_D", "A_C", "alpha_C", "N ~ C^", "D ~ C^"]]
    keys = ("E", "A_N", "alpha_N", "A_D", "alpha_D", "A_C", "alpha_C")
    for name, fit in fits.items():
        constants = fit.law.constants() if fit.law else {}
        own = [_number(exponents[key]) for key in exponents] if name == "L(N, D)" else [_NO_VALUE] * 2
        rows.append([f"ours, {name}", *(_with_bounds(key, constants, fit.bounds) for key in keys), *own])
    for each in PUBLISHED:
        constants, powers = each.law.constants(), (each.size_exponent, each.data_exponent)
        cells = [_number(constants.get(key)) for key in keys]
        rows.append([f"{each.name}, {each.source}", *cells, *(_number(power) for power in powers)])
    return rows


def _with_bounds(key: str, constants: dict[str, float], bounds: dict[str, tuple[float, float]]) -> str:
    if key not in constants or key not in bounds:
        return _number(constants.get(key))
    low, high = bounds[key]
    return f"{_number(constants[key])} ({_number(low)} to {_number(high)})"


def _number(value: float | None) -> str:
    return _NO_VALUE if value is None else f"{value:.3g}"


def _write_page(
    path: Path,
    points: Sequence[Point],
    left_out: Sequence[str],
    fits: dict[str, Fit],
    tables: tuple[list[list[str]], list[list[str]]],
) -> None:
    table, laws = tables
    fit = fits["L(N, D)"]
    reasons = [f"{name}: {each.reason}" for name, each in fits.items() if each.reason]
    note = (
        "Loss is the mean cross-entropy of a held-out code in nats; N leaves out the context's tables; D counts codes "
    )
    note += "trained on, repeats included; FLOPs are counted from the matrix products. "
    note += f"Left out, since the data do not last: {', '.join(left_out)}. " if left_out else ""
    write_page(
        path,
        "Scaling",
        f"{len(points)} runs; points measured, curves fitted.",
        [
            Section("Ladder", note + " ".join(reasons), _own_charts(points, fit.law), table[0], table[1:]),
            Section(
                "Laws",
                "Losses of other data do not compare; exponents may.",
                [_paper_chart(ONEREC_V2)],
                laws[0],
                laws[1:],
            ),
        ],
    )


def _own_charts(points: Sequence[Point], law: Law | None) -> list[str]:
    """Loss by size for each budget, measured and as the law has it, and loss by FLOPs for each size."""
    by_size, curves = [], []
    for budget, runs in _by_budget(points).items():
        by_size.append(Series(f"{budget:.2g} FLOPs", [(point.parameters, point.loss) for point in runs]))
        if law is not None and len(runs) > 1:
            curves.append(Series(f"{budget:.2g} FLOPs, law", _law_curve(law, runs)))
    sizes: dict[str, list[Point]] = {}
    for point in points:
        sizes.setdefault(point.size, []).append(point)
    by_flops = [Series(size, [(point.flops, point.loss) for point in runs]) for size, runs in sizes.items()]
    charts = [line_chart(by_size, "parameters N", "Loss by size (measured)", logarithmic_x=True)]
    charts.append(line_chart(curves, "parameters N", "Loss by size (fitted)", logarithmic_x=True))
    return [*charts, line_chart(by_flops, "training FLOPs", "Loss by compute (measured)", logarithmic_x=True)]


def _law_curve(law: Law, runs: Sequence[Point]) -> list[tuple[float, float]]:
    """The law along one budget, the codes that go with a size interpolated between its runs."""
    logs = np.linspace(np.log(runs[0].parameters), np.log(runs[-1].parameters), _CURVE_POINTS)
    codes = np.interp(logs, np.log([point.parameters for point in runs]), np.log([point.codes for point in runs]))
    losses = law.predict(np.exp(np.column_stack([logs, codes])))
    return list(zip(np.exp(logs).tolist(), losses.tolist(), strict=True))


def _paper_chart(paper: PublishedLaw) -> str:
    """A paper's points and its fit."""
    sizes = np.geomspace(paper.points[0][0], paper.points[-1][0], _CURVE_POINTS)
    fitted = list(zip(sizes.tolist(), paper.law.predict(sizes[:, None]).tolist(), strict=True))
    series = [Series("reported", paper.points), Series(f"fit of {paper.source}", fitted)]
    return line_chart(series, "parameters N", f"Loss by size, {paper.name}", logarithmic_x=True)


def print_rows(title: str, rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print a table: its headings, then its rows."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if number else "left")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)
