"""TRL's losses on whole items: values and gradients of DPO by its equation, and every loss TRL has."""

from typing import get_args

import pytest
import torch
from torch.nn.functional import logsigmoid

from onerec.errors import ConfigError
from rl.dpo import LossType, PreferenceLoss, PreferenceSettings, best_and_worst
from tokenizer.settings import build_settings

POLICY_M2 = torch.tensor([[-1.0, -2.0], [-3.0, -0.5]])
REFERENCE_M2 = torch.tensor([[-1.5, -1.0], [-3.0, -1.0]])


def test_the_loss_and_its_gradient_are_dpos() -> None:
    log_probs = POLICY_M2.clone().requires_grad_()
    loss = PreferenceLoss(PreferenceSettings(beta=0.3))(log_probs, REFERENCE_M2)
    margins = torch.tensor([0.5 + 1.0, 0.0 - 0.5]) * 0.3
    torch.testing.assert_close(loss, -logsigmoid(margins).mean())
    loss.backward()
    slopes = -0.3 * torch.sigmoid(-margins) / 2
    torch.testing.assert_close(log_probs.grad, torch.stack([slopes, -slopes], dim=1))


def test_a_likelihood_term_can_be_added() -> None:
    settings = PreferenceSettings(loss_types=("sigmoid", "sft"), loss_weights=(1, 0.5), beta=0.3)
    plain = PreferenceLoss(PreferenceSettings(beta=0.3))(POLICY_M2, REFERENCE_M2)
    torch.testing.assert_close(PreferenceLoss(settings)(POLICY_M2, REFERENCE_M2), plain + 0.5 * 2.0)  # mean of 1, 3


@pytest.mark.parametrize("loss_type", get_args(LossType))
def test_every_loss_of_trl_runs(loss_type: LossType) -> None:
    log_probs = POLICY_M2.clone().requires_grad_()
    settings = PreferenceSettings(loss_types=(loss_type,), label_smoothing=0.1)
    PreferenceLoss(settings)(log_probs, REFERENCE_M2).backward()
    assert log_probs.grad is not None
    assert log_probs.grad.isfinite().all()
    assert log_probs.grad.abs().sum() > 0


def test_chosen_and_rejected_are_logged_apart_and_once() -> None:
    loss = PreferenceLoss(PreferenceSettings(beta=0.5))
    loss(POLICY_M2, REFERENCE_M2)
    figures = loss.drain()
    assert figures["logps/chosen"] == pytest.approx(-2.0)
    assert figures["logps/rejected"] == pytest.approx(-1.25)
    assert figures["rewards/chosen"] == pytest.approx(0.5 * 0.25)
    assert figures["rewards/accuracies"] == pytest.approx(0.5)
    assert loss.drain() == {}


def test_no_pair_costs_nothing() -> None:
    log_probs = torch.zeros(3, 2, requires_grad=True)
    loss = PreferenceLoss(PreferenceSettings())(log_probs[:0], REFERENCE_M2[:0])
    loss.backward()
    assert loss == 0
    torch.testing.assert_close(log_probs.grad, torch.zeros(3, 2))


def test_best_and_worst_are_among_those_present() -> None:
    rewards_BG = torch.tensor([[1.0, 5.0, -2.0, 9.0], [0.0, 0.0, 1.0, 1.0]])
    present_BG = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert best_and_worst(rewards_BG, present_BG).tolist() == [[1, 2], [2, 0]]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"loss_weights": [1, 2]}, "found 2, expected one for each of 1 losses"),
        ({"loss_types": ["exo_pair"]}, "exo_pair needs label_smoothing above 0"),
        ({"loss_types": ["sigmoyd"]}, "loss_types.0: Input should be 'sigmoid'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_settings(PreferenceSettings, tree, "test.yaml")
