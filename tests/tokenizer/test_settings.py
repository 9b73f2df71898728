"""Settings: unknown keys are refused with the nearest name, overrides apply, YAML goes round."""

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from tokenizer.errors import ConfigError
from tokenizer.settings import Settings, apply_override, build_settings, dump_yaml, load_settings, read_yaml


class Optimizer(Settings):
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = 0


class KMeans(Settings):
    kind: Literal["kmeans"] = "kmeans"
    num_iterations: int = 20


class Autoencoder(Settings):
    kind: Literal["autoencoder"] = "autoencoder"
    hidden_width: int = 64


class Training(Settings):
    name: str = "run"
    epochs: int = 1
    folder: Path | None = None
    optimizer: Optimizer = Optimizer()
    quantizer: KMeans | Autoencoder = Field(KMeans(), discriminator="kind")
    fallback: KMeans | Optimizer | None = None
    stages: tuple[Optimizer, ...] = ()
    labels: dict[str, str] = Field({}, description="any keys")


def write(folder: Path, text: str) -> Path:
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return folder / "config.yaml"


@pytest.mark.parametrize(
    ("tree", "location", "nearest"),
    [
        ({"epoch": 3}, "'epoch'", "epochs"),
        ({"optimizer": {"learning_rat": 1.0}}, "'optimizer.learning_rat'", "learning_rate"),
        ({"optimizer": {"warmup": 1}}, "'optimizer.warmup'", "warmup_steps"),
        (
            {"quantizer": {"kind": "autoencoder", "hiddenwidth": 8}},
            "'quantizer.autoencoder.hiddenwidth'",
            "hidden_width",
        ),
        ({"quantizer": {"kind": "kmeans", "iterations": 8}}, "'quantizer.kmeans.iterations'", "num_iterations"),
        ({"fallback": {"num_iteration": 8}}, "'fallback.KMeans.num_iteration'", "num_iterations"),
        ({"stages": [{"learningrate": 1.0}]}, "'stages.0.learningrate'", "learning_rate"),
    ],
)
def test_an_unknown_key_names_the_nearest(tree: dict[str, object], location: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_settings(Training, tree, origin="run.yaml")
    message = str(error.value)
    assert message.startswith("run.yaml: unknown key")
    assert location in message
    assert f"Did you mean '{nearest}'?" in message


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        build_settings(Training, {"epoch": 3, "optimizer": {"learning_rate": -1}}, origin="x")
    assert "'epoch'" in str(error.value)
    assert "optimizer.learning_rate: Input should be greater than 0 (found -1)" in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["epochs=3"], Training(epochs=3)),
        (["optimizer.learning_rate=1e-2"], Training(optimizer=Optimizer(learning_rate=0.01))),
        (
            ["optimizer.learning_rate=0.5", "optimizer.warmup_steps=7"],
            Training(optimizer=Optimizer(learning_rate=0.5, warmup_steps=7)),
        ),
        (["name=a=b"], Training(name="a=b")),
        (["epochs=2", "epochs=4"], Training(epochs=4)),
        (["quantizer={kind: autoencoder, hidden_width: 8}"], Training(quantizer=Autoencoder(hidden_width=8))),
        (["folder="], Training(folder=None)),
        (["labels.new=train"], Training(labels={"new": "train"})),
    ],
)
def test_overrides_apply_in_order(overrides: list[str], expected: Training) -> None:
    assert load_settings(Training, overrides=overrides) == expected


def test_overrides_win_over_the_file_and_leave_the_rest_of_a_section(tmp_path: Path) -> None:
    path = write(tmp_path, "epochs: 5\noptimizer:\n  learning_rate: 0.5\n  warmup_steps: 9\n")
    loaded = load_settings(Training, path, ["optimizer.learning_rate=0.25"])
    assert loaded == Training(epochs=5, optimizer=Optimizer(learning_rate=0.25, warmup_steps=9))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", r"expected section\.key=value"),
        ("=3", r"expected section\.key=value"),
        ("epochs.more=3", "'epochs' holds a value, not a section"),
        ("name=[1", "not valid YAML"),
    ],
)
def test_an_override_that_cannot_be_read_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_override({"epochs": 1}, override)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "is not valid YAML"), ("- 1\n- 2\n", "found list at the top, expected a mapping")],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(write(tmp_path, text))


def test_a_missing_file_is_named_and_an_empty_one_means_the_defaults(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the config .*nowhere\.yaml"):
        load_settings(Training, tmp_path / "nowhere.yaml")
    assert load_settings(Training, write(tmp_path, "# nothing\n")) == Training()


def test_a_file_is_laid_over_its_base_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "plain.yaml").write_text(
        "epochs: 5\noptimizer: {learning_rate: 0.5}\nlabels: {a: x, b: y}\n", encoding="utf-8"
    )
    (tmp_path / "shared" / "wide.yaml").write_text(
        "base: plain.yaml\noptimizer: {warmup_steps: 7}\nstages: [{}]\n", encoding="utf-8"
    )
    path = write(tmp_path, "base: shared/wide.yaml\nlabels: {b: z}\nstages: []\nfolder:\n")
    assert load_settings(Training, path, ["epochs=6"]) == Training(
        epochs=6, optimizer=Optimizer(learning_rate=0.5, warmup_steps=7), labels={"a": "x", "b": "z"}
    )


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nowhere.yaml", r"cannot read the config .*nowhere\.yaml"),
        ("[a.yaml, b.yaml]", r"config\.yaml: base: found \['a\.yaml', 'b\.yaml'\], expected the path of a YAML file"),
        ("config.yaml", r"config\.yaml: its `base` leads back to itself"),
    ],
)
def test_a_base_that_cannot_be_one_is_refused(tmp_path: Path, base: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(Training, write(tmp_path, f"base: {base}\nepochs: 3\n"))


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Training().epochs = 2  # type: ignore[misc]


# Whatever can be read: control characters and line separators are no part of a config.
TEXTS = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"]), max_size=20)


@given(
    st.builds(
        Training,
        name=TEXTS,
        epochs=st.integers(),
        optimizer=st.builds(Optimizer, learning_rate=st.floats(min_value=1e-12, max_value=1e12)),
        quantizer=st.one_of(st.builds(KMeans), st.builds(Autoencoder, hidden_width=st.integers())),
        labels=st.dictionaries(TEXTS, TEXTS, max_size=5),
    )
)
def test_yaml_goes_round(tmp_path_factory: pytest.TempPathFactory, training: Training) -> None:
    path = write(tmp_path_factory.mktemp("round"), dump_yaml(training))
    assert load_settings(Training, path) == training
