"""The ablation: which variants a recipe gives, which of them share what, and two of them end to end, resumed."""

import json
from pathlib import Path

import pytest

from benchmarks.ablation import FULL, PLAIN, choose, main, variant_config, variants
from onerec.config import RunConfig
from onerec.errors import ConfigError
from onerec.training.pretraining import load_pretrained
from tests.tiny_run import write_config
from tokenizer.settings import load_settings
from tokenizer.table import SemanticIdTable

ROOT = Path(__file__).parent.parent.parent
CHANGES = """
data:
  world: {num_users: 40, num_events: 700}
tokenizer:
  given: {weight: 0.5, source: vector}
  collaborative: {width: 8}
  quantizer: {codes_per_level: [16, 16]}
  collisions: {policy: reassign}
model: {max_history_items: 20}
training: {epochs: 9, evaluate_every_epochs: 3, max_positions_per_step: 128}
decoding: {num_beams: 12, rescoring: 1}
scaling: {budgets: [1.0]}
"""


@pytest.fixture(scope="module")
def recipe() -> RunConfig:
    return load_settings(RunConfig, ROOT / "configs" / "recipe.yaml")


def test_each_ingredient_is_taken_away_with_what_needs_it_and_added_with_what_it_needs(recipe: RunConfig) -> None:
    found = {each.name: each for each in variants(recipe)}
    assert found["no-prefix_vectors"].changes == {"model.prefix_vectors": False}
    taught = {"model.item_distillation", "model.path_sampling"}
    ranked = {"decoding.rescoring", "decoding.dense_candidates"}
    id_heads = {"model.id_head_width", "model.num_id_heads", "model.id_head_start"}
    assert set(found["no-id_head"].changes) == id_heads
    assert set(found["no-item_head"].changes) == {"model.item_head_weight", *id_heads, *ranked, *taught}
    assert set(found["no-rescoring"].changes) == ranked
    plain, added = found[PLAIN].changes, found["with-rescoring"].changes
    assert set(plain) - set(added) == {"model.item_head_weight", "decoding.rescoring"}
    assert found["with-rescoring"].reference == PLAIN
    proposing = set(plain) - set(found["with-dense_candidates"].changes)
    assert proposing == {"model.item_head_weight", *ranked}
    assert "tokenizer.text.weight" not in plain  # something must be left
    assert "with-text_vectors" not in found
    configs = {name: variant_config(recipe, each) for name, each in found.items()}  # all of them are valid
    assert configs[FULL].model_dump(exclude={"name"}) == recipe.model_dump(exclude={"name"})
    assert configs["with-dropout"].model.dropout == 0.3
    assert not configs["with-dropout"].model.prefix_vectors
    assert len({config.name for config in configs.values()}) == len(found) > 25


def test_what_a_recipe_leaves_out_or_cannot_do_without_is_none_of_its_ingredients(recipe: RunConfig) -> None:
    lesser = RunConfig.model_validate(recipe.model_dump() | {"decoding": {"num_beams": 10}})
    names = {each.name for each in variants(lesser)}
    assert not names & {"no-rescoring", "with-rescoring", "no-wide_beam"}
    one_source = load_settings(RunConfig, ROOT / "configs" / "recipe.yaml", ["tokenizer.text.weight=0"])
    every = variants(one_source)
    assert not {"no-text_vectors", "no-collaborative_vectors"} & {each.name for each in every}
    assert {variant_config(one_source, each).tokenizer.collaborative.weight for each in every} == {0.7}


def test_names_choose_variants_and_what_they_are_held_against(recipe: RunConfig) -> None:
    every = variants(recipe)
    assert [each.name for each in choose(every, ["no-dropout"])] == [FULL, "no-dropout"]
    assert [each.name for each in choose(every, ["dropout"])] == [FULL, PLAIN, "no-dropout", "with-dropout"]
    assert choose(every, []) == every
    with pytest.raises(ConfigError, match=r"found 'drop'\. Did you mean 'no-dropout'"):
        choose(every, ["drop"])


def run(folder: Path, *options: str) -> int:
    config = write_config(folder, CHANGES)
    return main([str(config), "--runs", str(folder), "--epochs", "1", "--validation-users", "30", *options])


def test_variants_run_share_what_is_the_same_and_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--only", "no-rescoring", "no-reassigned_codes") == 0
    full, beam, suffix = (tmp_path / f"ablation_tiny_{name}" for name in (FULL, "no-rescoring", "no-reassigned_codes"))
    assert [name for name in ("data", "tokenizer", "pretrain") if (beam / name).is_symlink()] == [
        "data",
        "tokenizer",
        "pretrain",
    ]
    assert [name for name in ("data", "tokenizer", "pretrain") if (suffix / name).is_symlink()] == ["data"]
    tables = [SemanticIdTable.load(folder / "tokenizer") for folder in (full, suffix)]
    assert [len(table.codes_per_level) for table in tables] == [2, 3]
    load_pretrained(suffix / "pretrain", tables[1])
    figures = json.loads((tmp_path / "ablation_tiny" / "ablation.json").read_text())["variants"]
    assert list(figures) == [FULL, "no-rescoring", "no-reassigned_codes"]
    assert {row["rows"] for row in figures.values()} == {30}
    table = (tmp_path / "ablation_tiny" / "ablation.md").read_text()
    assert table in capsys.readouterr().out
    lines = {line.split("|")[1].strip(): line for line in table.splitlines()}
    assert f"{figures['no-rescoring']['metrics']['recall@10']:.4f}" in lines["no-rescoring"]
    difference = figures["no-rescoring"]["metrics"]["recall@10"] - figures[FULL]["metrics"]["recall@10"]
    assert f"full {difference:+.4f}" in lines["no-rescoring"]

    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("ablation_tiny_*/*/manifest.json")}
    assert run(tmp_path, "--only", "no-rescoring", "plain") == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert (tmp_path / "ablation_tiny_plain" / "ablation" / "manifest.json").is_file()
    # From the folder of a run, whose weights serve as they are.
    assert main([str(full), "--runs", str(tmp_path), "--set", "name=again", "--only", FULL]) == 0
    assert (tmp_path / "ablation_again_full" / "pretrain").is_symlink()
    again = json.loads((tmp_path / "ablation_again" / "ablation.json").read_text())["variants"][FULL]
    assert again["metrics"] == figures[FULL]["metrics"]
    capsys.readouterr()
    assert run(tmp_path, "--only", "nothing") == 1
    assert "--only: found 'nothing'" in capsys.readouterr().err
