"""Figures of a ladder whose losses follow a known law: its constants, its optima, and what is said where none is."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from onerec.scaling.figures import find_optima, publish_figures
from onerec.scaling.ladder import Point
from onerec.scaling.law import Law
from onerec.scaling.settings import ScalingSettings

LAW = Law(("N", "D"), 1.5, (50.0, 50.0), (0.4, 0.4))
SETTINGS = ScalingSettings(bootstrap_samples=2)


def ladder(budgets: tuple[float, ...] = (1e12, 1e13, 1e14, 1e15)) -> list[Point]:
    """Where C = 6 N D, so that the best N and D are equal and grow as the root of C."""
    points = []
    for budget in budgets:
        best = (budget / 6) ** 0.5
        for size in best * 2.0 ** np.arange(-3, 4):
            codes = budget / 6 / size
            loss = float(LAW.predict(np.array([[size, codes]]))[0])
            named = {"size": f"d{size:.0f}", "budget": budget, "parameters": round(size), "codes": round(codes)}
            points.append(Point(**named, flops=budget, epochs=1.0, loss=loss, minutes=0.0))
    return points


def test_optima_lie_where_the_parabola_is_lowest() -> None:
    optima = find_optima(ladder())
    assert [each.budget for each in optima] == [1e12, 1e13, 1e14, 1e15]
    for each in optima:
        assert each.parameters == pytest.approx((each.budget / 6) ** 0.5, rel=1e-3)
        assert each.codes == pytest.approx(each.parameters, rel=1e-2)


def test_what_is_written_holds_the_law(tmp_path: Path) -> None:
    publish_figures(ladder(), ["d8-1e+20"], tmp_path, SETTINGS, Console(quiet=True))
    found = json.loads((tmp_path / "law.json").read_text())
    assert found["laws"]["L(N, D)"]["constants"] == pytest.approx(LAW.constants(), rel=0.02)
    assert found["exponents"] == pytest.approx({"N ~ C": 0.5, "D ~ C": 0.5}, abs=1e-3)
    # Along the best sizes L = E + 2 * 50 / (C / 6)^0.2.
    of_compute = found["laws"]["L(C)"]["constants"]
    assert of_compute["alpha_C"] == pytest.approx(0.2, rel=0.02)
    assert of_compute["E"] == pytest.approx(1.5, rel=0.02)
    page = (tmp_path / "report.html").read_text()
    assert "d8-1e+20" in page
    for paper in ("arXiv 2508.20900", "arXiv 2512.24762", "3.13", "0.44"):
        assert paper in page


def test_a_short_ladder_says_what_it_lacks(tmp_path: Path) -> None:
    publish_figures(ladder((1e12,))[:2], [], tmp_path, SETTINGS, Console(quiet=True))
    found = json.loads((tmp_path / "law.json").read_text())
    assert "2 distinct runs for 5 constants" in found["laws"]["L(N, D)"]["reason"]
    assert found["optima"] == []
    assert found["exponents"] == {"N ~ C": None, "D ~ C": None}
