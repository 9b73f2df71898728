"""Contradictory settings are refused with what was found, what was expected and what to do."""

from pathlib import Path

import pytest

from onerec.errors import ConfigError
from onerec.model.configuration import OneRecConfig
from onerec.model.settings import ModelSettings
from tokenizer.settings import build_settings, dump_yaml, read_yaml


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 130}, "num_heads: found 4, expected a divisor of d_model 130"),
        ({"num_kv_heads": 1}, "num_kv_heads: found with context causal, expected context lazy"),
        ({"separate_values": True, "embedding_dim": 8}, "embedding_dim, separate_values: found with context causal"),
        ({"context": "lazy", "num_kv_heads": 3}, "num_kv_heads: found 3, expected a divisor of num_heads 4"),
        ({"context": "lazy", "num_kv_layers": 3}, "num_kv_layers: found 3, expected at most num_decoder_layers 2"),
        ({"item_distillation": 0.5, "item_head_weight": 0}, "item_distillation needs the item head"),
        ({"path_sampling": 0.5, "item_head_weight": 0}, "path_sampling needs the item head"),
        ({"path_sampling": 0.5, "context": "lazy"}, "path_sampling needs a context encoder"),
        ({"bos_reads_context": True, "context": "lazy"}, "bos_reads_context: found with context lazy"),
        ({"id_head_width": 8, "item_head_weight": 0}, "id_head_width: found 8, expected 0 without an item head"),
        ({"id_head_width": 8, "session_items": 2}, "id_head_width: found 8, expected 0 .* with session_items"),
        ({"num_id_heads": 2}, "num_id_heads: found 2 beside id_head_width 0"),
        ({"id_head_width": 8, "id_head_start": 0.1}, "id_head_start: found 0.1 with one id head"),
        ({"item_start": 0.1, "item_embedding": False}, "item_start: found 0.1 with item_embedding false"),
        ({"prefix_rivals": 5}, "prefix_rivals: found 5 with prefix_loss_weight 0"),
        ({"adversarial_by_fit": True}, "adversarial_by_fit: found True with adversarial_weight 0"),
        (
            {"prefix_rivals": 5, "prefix_loss_weight": 0.1, "session_items": 2},
            "prefix_rivals: found with session_items 2",
        ),
        ({"num_shared_experts": 1}, "num_experts: found 0 beside num_shared_experts"),
        ({"experts_in_context": True}, "num_experts: found 0 beside"),
        ({"num_experts": 4, "experts_per_token": 5}, "experts_per_token: found 5, expected at most num_experts 4"),
        ({"num_experts": 4, "num_dense_blocks": 2}, "num_dense_blocks: found 2, expected fewer than"),
        ({"num_experts": 4, "context": "lazy", "experts_in_context": True}, "experts_in_context: found with context"),
        ({"context_block": "hstu", "context": "lazy"}, "context_block: found hstu with context lazy"),
        (
            {"context_block": "hstu", "num_experts": 4, "experts_in_context": True},
            "experts_in_context: found with context_block hstu",
        ),
        ({"pathways": {"times": True}}, "pathways.times: found with context_block transformer, expected hstu"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_settings(ModelSettings, changes, "test")


def test_every_setting_reaches_the_configuration() -> None:
    changes = {
        "context": "lazy",
        "embedding_dim": 12,
        "num_kv_heads": 2,
        "num_kv_layers": 2,
        "separate_values": True,
        "num_experts": 6,
        "experts_per_token": 3,
        "num_shared_experts": 1,
        "expert_d_ff": 20,
        "num_dense_blocks": 1,
        "router_score": "softmax",
        "normalise_gates": True,
        "balancing_rate": 0.01,
    }
    config = ModelSettings(**changes).configuration((4, 4), 9)
    assert {key: getattr(config, key) for key in changes} == changes
    assert config.num_context_layers == 0
    assert config.many_targets


def test_defaults_are_dense_and_causal() -> None:
    config = ModelSettings().configuration((4, 4), 9)
    assert (config.context, config.num_experts, config.num_context_layers) == ("causal", 0, 2)
    old = {"codes_per_level": [4, 4], "num_items": 9, "d_ff": 512}  # as saved before there were experts
    new = OneRecConfig.from_dict(old)
    assert (new.num_experts, new.embedding_dim, new.num_kv_heads) == (0, new.d_model, new.num_heads)


def test_settings_of_a_run_are_read_back(tmp_path: Path) -> None:
    settings = ModelSettings(context="lazy", num_kv_heads=1)
    (tmp_path / "model.yaml").write_text(dump_yaml(settings))
    assert build_settings(ModelSettings, read_yaml(tmp_path / "model.yaml"), "run") == settings
