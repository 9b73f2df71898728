"""A plain page: all of its text escaped, its charts not, nothing outside it needed."""

import re

from onerec.evaluation.charts import Series, line_chart
from onerec.evaluation.page import Section, render_page


def test_the_page_shows_tables_and_charts_and_needs_nothing_else() -> None:
    chart = line_chart([Series("a & b", [(1, 2), (3, 4)])], "x", "y")
    page = render_page("<Title>", "below", [Section("One", "note", [chart, ""], ["k", "v"], [["a<b", "1"]])])
    assert "&lt;Title&gt;" in page
    assert "a&lt;b" in page
    assert page.count("<svg") == 1
    assert not re.search(r"<script|@import|(?:src|href)\s*=", page)
