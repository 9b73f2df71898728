"""DeepSpeed's config, and errors before any work is lost; what it trains is in test_distributed.py."""

import sys

import pytest
from pydantic import ValidationError

from onerec.errors import ConfigError
from onerec.training.deepspeed import deepspeed_config, deepspeed_runtime
from onerec.training.settings import TrainingSettings


def test_plain_data_parallelism_has_no_config() -> None:
    assert deepspeed_config(TrainingSettings(), "float32") is None


def test_config_follows_the_settings() -> None:
    settings = TrainingSettings(zero_stage=2, accumulation_steps=4, max_gradient_norm=0.5)
    config = deepspeed_config(settings, "bfloat16")
    assert config is not None
    assert config["zero_optimization"]["stage"] == 2
    assert config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 0.5
    assert config["torch_autocast"]["enabled"]
    assert not deepspeed_config(settings, "float32")["torch_autocast"]["enabled"]


def test_missing_package_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ConfigError, match=r"\[deepspeed\]"), deepspeed_runtime(1):
        pass
    with deepspeed_runtime(0):
        pass


@pytest.mark.parametrize("option", [{"optimizer": "muon"}, {"sparse_tables": True}])
def test_what_sharding_cannot_do_is_refused(option: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="set zero_stage to 0"):
        TrainingSettings(zero_stage=1, **option)
    TrainingSettings(zero_stage=0, **option)
