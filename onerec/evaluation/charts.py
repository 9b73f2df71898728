"""Small charts as inline SVG.

The page's CSS colours them, in its light or dark scheme; the attributes here are for readers that apply none to SVG.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 44
_BAR_HEIGHT, _BAR_LABEL_WIDTH = 26, 150
_COLOURS = ("#2f6fed", "#e2703a", "#16a07a", "#9357d6", "#c8a400", "#d1477a")
NUM_COLOURS = len(_COLOURS)
_MOST_MARKED_POINTS = 30


@dataclass(frozen=True)
class Series:
    """A named run of points."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bar:
    """A named value with the bounds of its interval, if it has one."""

    name: str
    value: float
    interval: tuple[float, float] | None = None
    colour: int = 0


def line_chart(series: Sequence[Series], x_label: str, y_label: str, logarithmic_x: bool = False) -> str:
    """Lines over a common pair of axes, with a legend where there are several; empty without points."""
    points = [point for each in series for point in each.points]
    if not points:
        return ""
    plane = _Plane.around(points, logarithmic_x)
    parts = _axes(plane, x_label)
    for number, each in enumerate(series):
        places = [plane.at(*point) for point in each.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        colour = number % NUM_COLOURS
        parts.append(
            f'<polyline class="line c{colour}" fill="none" stroke="{_COLOURS[colour]}" stroke-width="2" '
            f'points="{path}"/>'
        )
        if len(places) <= _MOST_MARKED_POINTS:
            dot = f'class="bar c{colour}" fill="{_COLOURS[colour]}" r="3"'
            parts += [f'<circle {dot} cx="{x:.1f}" cy="{y:.1f}"/>' for x, y in places]
    return _figure(_svg(_WIDTH, _HEIGHT, parts, y_label), y_label, [each.name for each in series])


def bar_chart(bars: Sequence[Bar], label: str) -> str:
    """Horizontal bars from zero, with whiskers for intervals; empty without bars."""
    if not bars:
        return ""
    top = max(max(bar.value, bar.interval[1] if bar.interval else 0.0) for bar in bars) or 1.0
    scale = (_WIDTH - _BAR_LABEL_WIDTH - 70) / top
    parts = []
    for number, bar in enumerate(bars):
        y = number * _BAR_HEIGHT + 4
        middle = y + (_BAR_HEIGHT - 8) / 2
        parts.append(
            f'<text x="{_BAR_LABEL_WIDTH - 10}" y="{middle + 4}" text-anchor="end">{escape(bar.name)}</text>'
            f'<rect class="bar c{bar.colour}" fill="{_COLOURS[bar.colour]}" x="{_BAR_LABEL_WIDTH}" y="{y}" rx="2" '
            f'width="{max(bar.value * scale, 1):.1f}" height="{_BAR_HEIGHT - 8}"/>'
        )
        end = bar.value
        if bar.interval:
            low, high = (_BAR_LABEL_WIDTH + bound * scale for bound in bar.interval)
            parts.append(
                f'<line class="whisker" stroke="currentColor" x1="{low:.1f}" x2="{high:.1f}" '
                f'y1="{middle}" y2="{middle}"/>'
            )
            end = max(end, bar.interval[1])
        parts.append(
            f'<text x="{_BAR_LABEL_WIDTH + end * scale + 8:.1f}" y="{middle + 4}">{format_tick(bar.value)}</text>'
        )
    return _figure(_svg(_WIDTH, len(bars) * _BAR_HEIGHT + 4, parts, label), label, [])


def nice_ticks(low: float, high: float, num_wanted: int = 5) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, that lie from `low` to `high`."""
    rough = (high - low) / num_wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [number * step for number in _whole_numbers(low / step, high / step)]


def format_tick(value: float) -> str:
    """A number in few characters: 1.5M, 20k, 350, 0.05."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}" if abs(value) >= 1 or value == 0 else f"{value:.4f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class _Plane:
    """Where the points of a line chart lie in the picture."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    logarithmic_x: bool

    @classmethod
    def around(cls, points: Sequence[tuple[float, float]], logarithmic_x: bool) -> "_Plane":
        xs = [math.log10(x) if logarithmic_x else x for x, _ in points]
        return cls(_padded_range(xs, 0.0), _padded_range([y for _, y in points], 0.05), logarithmic_x)

    def at(self, x: float, y: float) -> tuple[float, float]:
        place = math.log10(x) if self.logarithmic_x else x
        across = (place - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        up = (y - self.y_range[0]) / (self.y_range[1] - self.y_range[0])
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    def x_ticks(self) -> list[float]:
        if not self.logarithmic_x:
            return nice_ticks(*self.x_range)
        return [10.0**power for power in _whole_numbers(*self.x_range)]


def _axes(plane: _Plane, x_label: str) -> list[str]:
    left, right, bottom = _LEFT, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for tick in nice_ticks(*plane.y_range):
        _, y = plane.at(1.0, tick)
        parts.append(f'<line class="grid" stroke="#e2e6ec" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{format_tick(tick)}</text>')
    for tick in plane.x_ticks():
        x, _ = plane.at(tick, 0.0)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{format_tick(tick)}</text>')
    parts.append(f'<line class="axis" stroke="#5d6b7c" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (left + right) / 2
    parts.append(f'<text class="label" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    return parts


def _whole_numbers(low: float, high: float) -> range:
    return range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)


def _padded_range(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) / 2 or 0.5
        return low - margin, high + margin
    return low - share * (high - low), high + share * (high - low)


def _svg(width: int, height: int, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" font-size="12" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _figure(svg: str, caption: str, names: Sequence[str]) -> str:
    keys = [f'<span><i class="c{number % NUM_COLOURS}"></i>{escape(name)}</span>' for number, name in enumerate(names)]
    legend = f'<div class="legend">{"".join(keys)}</div>' if len(keys) > 1 else ""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}{legend}</figure>"
