"""A plain page of tables and charts, self-contained as the run's report is: no script, no outside asset."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from onerec.evaluation.charts import NUM_COLOURS
from tokenizer.artifacts import atomic_file

_TEMPLATE = "page_template.html"


@dataclass(frozen=True)
class Section:
    """A heading with charts (SVG of `onerec.evaluation.charts`) and a table, either of which may be left out."""

    heading: str
    note: str = ""
    charts: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write the page."""
    page = render_page(title, subtitle, sections)
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as one HTML string."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    marked = [{**vars(section), "charts": [Markup(chart) for chart in section.charts if chart]} for section in sections]
    return environment.get_template(_TEMPLATE).render(
        title=title, subtitle=subtitle, sections=marked, num_colours=NUM_COLOURS
    )
