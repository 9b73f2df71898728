"""The bundle: all that serving needs in one folder under one manifest.

model.safetensors config.json   the model, loadable with from_pretrained
table/                          the ID table
items.parquet                   the catalogue's ids, texts and categories
tokenizer/                      by option: frozen codebooks and fusion, which place items that join later
reward/                         by option: a reward model that selects among the beams
trained_items.npy               by option: which items are not new, to keep places of a list for those that are
transitions.safetensors         by option: what followed what in the training log
README.md                       the model card
manifest.json                   hashes of every file and of what the bundle was made from
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from transformers import AutoConfig, AutoModel

from onerec.config import RunConfig
from onerec.data.prepared import PreparedData
from onerec.data.titles import item_titles
from onerec.decoding.new_items import NewItemSlots
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.selection import Selector
from onerec.decoding.transitions import Transitions
from onerec.decoding.trie import Trie
from onerec.errors import ArtifactError
from onerec.evaluation.results import Results
from onerec.evaluation.tables import main_metric
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from onerec.model.precision import Precision
from onerec.model.preference.artefact import KIND as REWARD_KIND
from onerec.model.preference.artefact import load_reward_model
from tokenizer.artifacts import (
    Manifest,
    atomic_folder,
    hash_settings,
    read_manifest,
    require_same_hash,
    write_manifest,
)
from tokenizer.assignment import Assigner, copy_assigner
from tokenizer.table import SemanticIdTable

KIND = "bundle"
_TOKENIZER, _REWARD = "tokenizer", "reward"
_TEMPLATE = "model_card.md"


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle: the model, its ID table and the catalogue, checked to belong together.

    `assigner` places new items; None in a bundle that was written without its tokenizer. `selector` puts beams in order
    by a reward model; None in one without. `new_items` keeps places of a list for new ones; None where none are kept.
    `transitions` tell what followed what in the log; None where they have no say.
    """

    model: OneRec
    table: SemanticIdTable
    items: pl.DataFrame
    manifest: Manifest
    assigner: Assigner | None = None
    selector: Selector | None = None
    new_items: NewItemSlots | None = None
    transitions: Transitions | None = None

    @classmethod
    def load(cls, folder: Path) -> "Bundle":
        """Load and check a bundle; the model is in evaluation mode.

        Raises:
            ArtifactError: a missing or changed file, or parts that do not belong together (both hashes shown).
        """
        manifest = read_manifest(folder, KIND)
        register_auto_classes()
        model: OneRec = AutoModel.from_pretrained(folder)
        items = pl.read_parquet(folder / "items.parquet")
        table = SemanticIdTable.load(folder / "table", item_ids=[str(item) for item in items["item_id"].to_list()])
        require_same_hash(
            f"{folder}: its model was trained on another ID table",
            model.config.table_hash,
            table.content_hash,
            "Write the bundle again from one run.",
        )
        has_tokenizer = any(name.startswith(f"{_TOKENIZER}/") for name in manifest.files)
        assigner = Assigner.load(folder / _TOKENIZER, table) if has_tokenizer else None
        has_reward = any(name.startswith(f"{_REWARD}/") for name in manifest.files)
        selector = Selector.load(folder / _REWARD, table) if has_reward else None
        new_items = NewItemSlots.load(int(manifest.details.get("new_item_slots", 0)), folder)
        transitions = Transitions.load(float(manifest.details.get("transitions", 0.0)), folder)
        return cls(model.eval(), table, items, manifest, assigner, selector, new_items, transitions)

    @property
    def titles(self) -> list[str]:
        """What to call each item."""
        return item_titles(self.items, self.manifest.details["text_columns"])

    def recommender(self, num_beams: int | None = None, precision: Precision | None = None) -> OneRecRecommender:
        """The same recommender that was evaluated, with the run's number of beams and precision unless told otherwise.

        Raises:
            ConfigError: this machine does not multiply in that precision.
        """
        beams = num_beams or int(self.manifest.details["num_beams"])
        details = self.manifest.details
        return OneRecRecommender(
            self.model,
            build_trie(self.table),
            beams,
            precision or details["precision"],
            rescoring=float(details.get("rescoring", 0.0)),
            new_items=self.new_items,
            dense_candidates=int(details.get("dense_candidates", 0)),
            transitions=self.transitions,
        )


def build_trie(table: SemanticIdTable) -> Trie:
    """The trie of an ID table."""
    return Trie.from_table(table.codes_NL, table.codes_per_level, table.bucket_rank_N)


def register_auto_classes() -> None:
    """Let transformers' AutoConfig and AutoModel load OneRec folders."""
    AutoConfig.register(OneRecConfig.model_type, OneRecConfig, exist_ok=True)
    AutoModel.register(OneRecConfig, OneRec, exist_ok=True)


def write_bundle(
    folder: Path,
    model: OneRec,
    table: SemanticIdTable,
    data: PreparedData,
    results: Results,
    config: RunConfig,
    inputs: dict[str, str],
    tokenizer: Path | None = None,
    reward: Path | None = None,
) -> None:
    """Write the bundle of a run.

    Args:
        results: figures that the model card shows.
        inputs: content hashes of the artefacts it is made from.
        tokenizer: folder of the tokenizer that made the table, so that the bundle can place new items; None leaves
            that part out.
        reward: a finished reward model of this catalogue, to select among the beams; None leaves it out.

    Raises:
        ArtifactError: the model was trained on another ID table, or the tokenizer or the reward model are of another.
    """
    _require_one_table(model, table, data)
    shown = ["item_id", *data.schema.text_columns, *data.schema.category_columns]
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        table.save(temporary / "table")
        data.items.select(*dict.fromkeys(shown)).write_parquet(temporary / "items.parquet")
        if tokenizer is not None:
            inputs = {**inputs, _TOKENIZER: _copy_tokenizer(tokenizer, table, temporary)}
        if reward is not None:
            inputs = {**inputs, _REWARD: _copy_reward(reward, table, temporary)}
        training = data.histories.training()
        counts_N = training.item_counts(data.num_items)
        if (new_items := NewItemSlots.of(config.decoding.new_item_slots, counts_N)) is not None:
            new_items.save(temporary)
        transitions = Transitions.of(config.decoding.transitions, training, data.num_items)
        if transitions is not None:
            transitions.save(temporary)
        (temporary / "README.md").write_text(_model_card(model, table, data, results, config), encoding="utf-8")
        details = _details(config, data.schema.text_columns)
        write_manifest(temporary, KIND, {**inputs, "table": table.content_hash}, hash_settings(config), details)


def _require_one_table(model: OneRec, table: SemanticIdTable, data: PreparedData) -> None:
    require_same_hash("bundle: the model's ID table", model.config.table_hash, table.content_hash, "Train again.")
    if data.num_items != table.num_items:
        raise ArtifactError(
            f"bundle: found a catalogue of {data.num_items} items, expected the {table.num_items} of the ID table. "
            "Fit the tokenizer on this data."
        )


def add_reward(folder: Path, reward: Path, table: SemanticIdTable) -> bool:
    """Put a reward model into a finished bundle that has none; returns whether it had none.

    Raises:
        ArtifactError: the bundle has another one, or this one is of another catalogue.
    """
    manifest = read_manifest(folder, KIND)
    if _REWARD in manifest.inputs:
        expected = read_manifest(reward, REWARD_KIND, verify_files=False).content_hash
        what = f"{folder}: its reward"
        require_same_hash(what, manifest.inputs[_REWARD], expected, f"Delete {folder} and run again.")
        return False
    with atomic_folder(folder) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
        inputs = {**manifest.inputs, _REWARD: _copy_reward(reward, table, temporary)}
        write_manifest(temporary, KIND, inputs, manifest.config_hash, manifest.details)
    return True


def _copy_tokenizer(tokenizer: Path, table: SemanticIdTable, bundle: Path) -> str:
    """Copy what places new items; the content hash of the tokenizer it is from."""
    manifest = copy_assigner(tokenizer, bundle / _TOKENIZER)
    found = manifest.details["table_hash"]
    require_same_hash(f"{tokenizer}: its ID table", found, table.content_hash, "Give the tokenizer of this table.")
    return manifest.content_hash


def _copy_reward(reward: Path, table: SemanticIdTable, bundle: Path) -> str:
    """Copy what selects among the beams; its content hash."""
    load_reward_model(reward, table)  # checks that it is one, and of this catalogue
    shutil.copytree(reward, bundle / _REWARD)
    return read_manifest(reward, REWARD_KIND).content_hash


def _details(config: RunConfig, text_columns: Sequence[str]) -> dict[str, Any]:
    """What the manifest tells of how to serve."""
    return {
        "run": config.name,
        "num_beams": config.decoding.num_beams,
        "precision": config.decoding.precision,
        "rescoring": config.decoding.rescoring,
        "dense_candidates": config.decoding.dense_candidates,
        "new_item_slots": config.decoding.new_item_slots,
        "transitions": config.decoding.transitions,
        "text_columns": list(text_columns),
    }


def _model_card(model: OneRec, table: SemanticIdTable, data: PreparedData, results: Results, config: RunConfig) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown, not HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(
        model=model.config,
        num_parameters=model.num_parameters(),
        table=table,
        data=data,
        provenance=data.manifest.details,
        results=results,
        main=main_metric(results),
        config=config,
    )
