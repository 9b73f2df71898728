import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tokenizer.__main__ import load_section, main
from tokenizer.artifacts import read_manifest
from tokenizer.errors import ConfigError
from tokenizer.sequences import Sequences
from tokenizer.table import SemanticIdTable

CONFIG = """
model: {width: 64}
tokenizer:
  text: {weight: 0}
  collaborative: {weight: 0.3, width: 4}
  given: {weight: 0.7, source: vector}
  quantizer: {codes_per_level: [8, 8], iterations: 5}
"""


@pytest.fixture
def run_folder(items: pl.DataFrame, sequences: Sequences, tmp_path: Path) -> Path:
    (tmp_path / "data/events").mkdir(parents=True)
    items.write_parquet(tmp_path / "data/items.parquet")
    np.save(tmp_path / "data/events/offsets.npy", sequences.offsets)
    np.save(tmp_path / "data/events/items.npy", sequences.items)
    np.save(tmp_path / "data/events/splits.npy", np.tile(np.array([0, 0, 0, 0, 1, 2], dtype=np.uint8), 40))
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path


def _fit(folder: Path, *more: str, out: str = "tok") -> int:
    data = ["--items", str(folder / "data/items.parquet"), "--sequences", str(folder / "data/events")]
    return main(["fit", "--config", str(folder / "run.yaml"), *data, "--out", str(folder / out), *more])


def test_fit_assign_report(run_folder: Path, items: pl.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    assert _fit(run_folder, "--set", "tokenizer.collisions.policy=bucket") == 0
    assert "policy bucket" in capsys.readouterr().out
    new = items.head(3).with_columns(pl.concat_str(pl.lit("n"), "item_id").alias("item_id"))
    new.write_parquet(run_folder / "new.parquet")
    assign = ["assign", "--tokenizer", str(run_folder / "tok"), "--items", str(run_folder / "new.parquet")]
    assert main([*assign, "--out", str(run_folder / "tok2")]) == 0
    assert SemanticIdTable.load(run_folder / "tok2").num_items == 123
    capsys.readouterr()
    assert main(["report", "--tokenizer", str(run_folder / "tok2")]) == 0
    assert "123 items" in capsys.readouterr().out


@pytest.mark.parametrize("sources", ["plain", "behaviour"])
def test_validation_and_test_events_change_nothing(run_folder: Path, sources: str) -> None:
    """A marker in the test period: other items, same training events, same artefact; in the training period, not."""
    training = "{steps: 3, batch_size: 8, caption_items: 4, caption_words: 4}"
    behaviour = f"tokenizer.behaviour={{weight: 1, num_layers: 1, width: 8, num_heads: 2, training: {training}}}"
    texts = "tokenizer.text={weight: 0, columns: [item_id], cache_folder: ''}"  # nothing is taken up from a cache
    overrides = ["--set", behaviour, "--set", texts] if sources == "behaviour" else []
    assert _fit(run_folder, *overrides) == 0
    path = run_folder / "data/events/items.npy"
    changed = np.load(path)
    changed[4::6], changed[5::6] = 7, 99
    np.save(path, changed)
    assert _fit(run_folder, *overrides, out="tok2") == 0
    changed[3::6] = 7
    np.save(path, changed)
    assert _fit(run_folder, *overrides, out="tok3") == 0
    first, second, third = (read_manifest(run_folder / name, "tokenizer").files for name in ("tok", "tok2", "tok3"))
    assert first == second
    fitted = ["vectors.npy", *(["qformer.safetensors"] if sources == "behaviour" else [])]
    assert [name for name in fitted if first[name] == third[name]] == []


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("tokenizer: {quantiser: {}}", [], "Did you mean 'quantizer'"),
        ("tokenizer: {quantizer: {codes_per_levels: [8]}}", [], "Did you mean 'codes_per_level'"),
        ("tokeniser: {seed: 1}", [], "Did you mean 'tokenizer'"),
        ("tokenizer: 3", [], "expected a mapping"),
        ("tokenizer: {}", ["model.width=3"], "expected a key of the tokenizer"),
        ("tokenizer: {quantizer: {codes_per_level: [8, 1]}}", [], "at least 2 codes"),
        ("tokenizer: {text: {weight: 0}, collaborative: {weight: 0}}", [], "every source of vectors has weight 0"),
        ("tokenizer: {given: {weight: 1}}", [], "given.source is empty"),
        ("tokenizer: {behaviour: {width: 10}}", [], "width 10 is not divisible by num_heads 4"),
        ("tokenizer: {behaviour: {swing: {alfa: 2}}}", [], "Did you mean 'alpha'"),
    ],
)
def test_bad_config(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_section(tmp_path / "run.yaml", overrides)


def test_errors_are_explained_on_stderr(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _fit(run_folder, "--set", "tokenizer.given.source=vektor") == 2
    assert "error: given vectors: 'vektor' is neither" in capsys.readouterr().err
    items = run_folder / "data/items.parquet"
    items.write_bytes(items.read_bytes()[:100])
    assert _fit(run_folder) == 2
    assert "expected a Parquet table" in capsys.readouterr().err


def test_auto_columns_come_from_the_schema(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_folder / "data/schema.json").write_text(json.dumps({"text_columns": ["missing"]}))
    assert _fit(run_folder, "--set", "tokenizer.text.weight=1") == 2
    assert "no text column 'missing'" in capsys.readouterr().err
