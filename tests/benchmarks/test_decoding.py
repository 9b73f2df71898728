"""Decoding against generate: what is timed, and which figures come of it."""

from collections.abc import Callable

import pytest
from torch import Tensor

from benchmarks.decoding import Generate, Onerec, Sizes, make_unique_table, measure_width, ratios
from benchmarks.training import make_table
from onerec.model import decoder

SMALLEST = Sizes(max_requests=1, max_rows=10, num_turns=2, num_generate_turns=1)


def test_ratios_by_hand() -> None:
    seconds = {"onerec": 2.0, "unique_ids": 1.0, "generate_constrained": 30.0, "generate": 20.0}
    processor = {"onerec": 4.0, "unique_ids": 2.0, "generate_constrained": 40.0, "generate": 24.0}
    found = ratios(seconds, processor)
    assert found == {
        "ratio_vs_generate_constrained": 15,
        "ratio_vs_generate": 10,
        "unique_ids_ratio_vs_generate_constrained": 30,
        "unique_ids_ratio_vs_generate": 20,
        "cpu_ratio_vs_generate_constrained": 10,
        "unique_ids_cpu_ratio_vs_generate_constrained": 20,
        "cpu_ratio_vs_generate": 6,
        "unique_ids_cpu_ratio_vs_generate": 12,
    }
    in_float32 = ratios(seconds | {"float32_generate": 50.0}, processor | {"float32_generate": 60.0})
    assert {name: in_float32[name] for name in in_float32.keys() - found.keys()} == {
        "ratio_vs_float32_generate": 25,
        "unique_ids_ratio_vs_float32_generate": 50,
        "cpu_ratio_vs_float32_generate": 15,
        "unique_ids_cpu_ratio_vs_float32_generate": 30,
    }
    gains = {"compiled_gain": 1.25, "unique_ids_compiled_gain": 0.5}
    assert ratios(seconds | {"compiled": 1.6, "unique_ids_compiled": 2.0}, processor) == found | gains


def test_eager_and_compiled_steps_take_turns_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler, which takes minutes, is left out: what it would have compiled runs as it is."""
    asked = []

    def uncompiled() -> Callable[..., Tensor]:
        asked.append("steps")
        return decoder._run_blocks

    monkeypatch.setattr(decoder, "_compiled_run_blocks", uncompiled)
    table = make_table()
    models = Onerec(table, "float32"), Onerec(make_unique_table(), "float32"), {"": Generate(table, "float32")}
    eager = measure_width(*models, num_beams=10, sizes=SMALLEST, compiled=False)
    assert asked == []
    both = measure_width(*models, num_beams=10, sizes=SMALLEST, compiled=True)
    programs = {name.removesuffix("_requests_per_s") for name in both.keys() - eager.keys()}
    assert programs == {"compiled", "unique_ids_compiled", "compiled_gain", "unique_ids_compiled_gain"}
    assert both["compiled_gain"] == pytest.approx(both["compiled_requests_per_s"] / both["requests_per_s"])
    turns, levels = 1 + SMALLEST.num_turns, 4 + 3  # one turn is not timed; levels of both catalogues
    assert len(asked) == turns * levels
    assert both["invalid_rate"] == 0
