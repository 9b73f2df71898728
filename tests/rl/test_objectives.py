"""Values and gradients of the objectives against their equations."""

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from onerec.errors import OneRecError
from rl.objectives import cispo, ecpo, gbpo, group_advantages, grpo, kl_to_reference, sapo, vespo

EPSILON, EPSILON_HIGH, DELTA = 0.2, 0.2, 0.1
BOUND = 1 + EPSILON + DELTA

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]

probabilities = st.floats(1e-6, 1 - 1e-6)
advantages = st.floats(-3, 3)


def clip(log_probs: Tensor, old: Tensor, gains: Tensor) -> Tensor:
    return grpo(log_probs, old, gains, EPSILON, EPSILON_HIGH)


def clip_higher(log_probs: Tensor, old: Tensor, gains: Tensor) -> Tensor:
    return grpo(log_probs, old, gains, EPSILON, 0.5)


def clip_weights(log_probs: Tensor, old: Tensor, gains: Tensor) -> Tensor:
    return cispo(log_probs, old, gains, 0.5)


def early_clip(log_probs: Tensor, old: Tensor, gains: Tensor) -> Tensor:
    return ecpo(log_probs, old, gains, EPSILON, DELTA)


def value_and_gradient(objective: Objective, policy: float, old: float, advantage: float) -> tuple[float, float]:
    """J and dJ/d log pi of one sample."""
    log_prob = torch.tensor([policy], dtype=torch.float64).log().requires_grad_()
    old_log_prob = torch.tensor([old], dtype=torch.float64).log()
    surrogate = objective(log_prob, old_log_prob, torch.tensor([advantage], dtype=torch.float64))
    surrogate.sum().backward()
    assert log_prob.grad is not None
    return surrogate.item(), log_prob.grad.item()


# ---- GRPO --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.1, 2.0, 2.2, 2.2),
        (1.5, 2.0, 2.4, 0.0),  # clipped above
        (0.5, 2.0, 1.0, 1.0),
        (0.5, -2.0, -1.6, 0.0),  # clipped below
        (1.0, -2.0, -2.0, -2.0),
        (5.0, -2.0, -10.0, -10.0),  # no bound
    ],
)
def test_grpo_by_hand(ratio: float, advantage: float, value: float, gradient: float) -> None:
    assert value_and_gradient(clip, 0.1 * ratio, 0.1, advantage) == pytest.approx((value, gradient))


@pytest.mark.parametrize(
    ("objective", "loss_type", "epsilon_high"),
    [
        *((clip, name, EPSILON) for name in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")),
        (clip_higher, "dapo", 0.5),
        (clip_weights, "cispo", 1.5),  # TRL takes the bound itself
        (sapo, "sapo", EPSILON),
        (vespo, "vespo", EPSILON),
    ],
)
def test_the_variants_of_grpo_and_the_kl_are_trls_on_completions_of_one_token(
    objective: Objective, loss_type: str, epsilon_high: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs, old, reference, gains = torch.randn(4, 1, 64, generator=generator) - 3
    gains = gains + 3
    own, theirs = (log_probs.clone().requires_grad_() for _ in range(2))
    (-objective(own, old, gains) + 0.1 * kl_to_reference(own, reference)).mean().backward()
    trainer = trl_trainer(theirs, loss_type, epsilon_high)
    token = torch.ones(64, 1, dtype=torch.int64)
    prompt = {"prompt_ids": token, "prompt_mask": token, "completion_ids": token, "completion_mask": token}
    told = {"advantages": gains[0], "old_per_token_logps": old.T, "ref_per_token_logps": reference.T}
    GRPOTrainer._compute_loss(trainer, None, {**prompt, **told, "num_items_in_batch": torch.tensor(64)}).backward()
    torch.testing.assert_close(own.grad, theirs.grad)


def trl_trainer(log_probs: Tensor, loss_type: str, epsilon_high: float) -> SimpleNamespace:
    """What TRL's method reads of its trainer; `log_probs` (1, N) are those of one token each."""

    def alone(tensor: Tensor, **_: str) -> Tensor:
        return tensor

    def given(*_: object, **__: object) -> tuple[Tensor, Tensor, None]:
        return log_probs.T, torch.zeros(log_probs.size(1), 1), None

    defaults = GRPOConfig.__dataclass_fields__
    shape = {name: defaults[name].default for name in defaults if name.startswith(("sapo_", "vespo_"))}
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=alone, reduce=alone, num_processes=1),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1, **shape),
        loss_type=loss_type,
        importance_sampling_level="token",
        epsilon_low=EPSILON,
        epsilon_high=epsilon_high,
        beta=0.1,
        max_completion_length=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        current_gradient_accumulation_steps=1,
        aux_loss_enabled=False,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=given,
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )


# ---- ECPO --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "gradient"), [(1.31, -2 * BOUND), (5.0, -2 * BOUND), (1.29, -2 * 1.29), (1.0, -2.0)])
def test_ecpo_bounds_the_gradient_of_bad_samples(ratio: float, gradient: float) -> None:
    """dJ/dlogpi is (1 + epsilon + delta) A above the bound and r A below it."""
    assert value_and_gradient(early_clip, 0.1 * ratio, 0.1, -2.0) == pytest.approx((gradient, gradient))


@given(probabilities, probabilities, st.floats(0, 3))
def test_ecpo_is_grpo_for_good_samples(policy: float, old: float, advantage: float) -> None:
    expected = value_and_gradient(clip, policy, old, advantage)
    assert value_and_gradient(early_clip, policy, old, advantage) == pytest.approx(expected, abs=1e-9)


@given(probabilities, probabilities, st.floats(-3, -1e-3))
def test_ecpo_follows_its_equation_for_bad_samples(policy: float, old: float, advantage: float) -> None:
    ratio = policy / max(policy / BOUND, old)
    value = min(ratio * advantage, max(1 - EPSILON, min(ratio, 1 + EPSILON)) * advantage)
    gradient = ratio * advantage if ratio > 1 - EPSILON else 0.0
    if abs(ratio - (1 - EPSILON)) > 1e-6:  # not on the kink
        assert value_and_gradient(early_clip, policy, old, advantage) == pytest.approx((value, gradient), rel=1e-6)


# ---- GBPO --------------------------------------------------------------------------------------------------------


@given(probabilities, probabilities, advantages)
def test_gbpo_follows_its_equation(policy: float, old: float, advantage: float) -> None:
    denominator = max(old, policy) if advantage >= 0 else max(old, 1 - policy)
    expected = advantage * policy / denominator
    found = value_and_gradient(gbpo, policy, old, advantage)
    assert found == pytest.approx((expected, expected), rel=1e-6, abs=1e-12)


@given(probabilities, probabilities, advantages)
def test_gbpo_stays_within_binary_cross_entropy(policy: float, old: float, advantage: float) -> None:
    """|dJ/dpi| <= |A| / pi for a good sample and <= |A| / (1 - pi) for a bad one."""
    _, by_log = value_and_gradient(gbpo, policy, old, advantage)
    by_probability = abs(by_log) / policy
    bound = abs(advantage) / (policy if advantage >= 0 else 1 - policy)
    assert by_probability <= bound * (1 + 1e-6) + 1e-12


def test_gbpo_throws_no_sample_away_where_grpo_clips() -> None:
    assert value_and_gradient(clip, 0.15, 0.1, 1.0)[1] == 0
    assert value_and_gradient(gbpo, 0.15, 0.1, 1.0)[1] == pytest.approx(1)  # 0.15 / max(0.1, 0.15)
    assert value_and_gradient(gbpo, 0.01, 0.9, -1.0)[1] == pytest.approx(-0.01 / 0.99)


def test_gbpo_of_a_certain_item_is_finite() -> None:
    log_probs = torch.zeros(1, requires_grad=True)
    surrogate = gbpo(log_probs, torch.tensor([-3.0]), torch.tensor([-1.0]))
    surrogate.sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.isfinite().all()


# ---- behaviour nobody logged, KL ---------------------------------------------------------------------------------


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("objective", [clip, early_clip])
def test_without_a_behaviour_probability_the_ratio_is_one(objective: Objective, advantage: float) -> None:
    assert value_and_gradient(objective, 0.3, float("nan"), advantage) == pytest.approx((advantage, advantage))


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("objective", [clip_weights, sapo, vespo])
def test_without_a_behaviour_probability_the_gradient_is_the_advantage(objective: Objective, advantage: float) -> None:
    assert value_and_gradient(objective, 0.3, float("nan"), advantage)[1] == pytest.approx(advantage)


def test_gbpo_without_a_behaviour_probability() -> None:
    assert value_and_gradient(gbpo, 0.3, float("nan"), 2.0) == pytest.approx((2.0, 2.0))
    expected = -2.0 * 0.3 / 0.7  # old := pi, and the bad sample's floor 1 - pi is the larger
    assert value_and_gradient(gbpo, 0.3, float("nan"), -2.0) == pytest.approx((expected, expected))


def test_kl_is_zero_at_the_reference_and_true_in_expectation() -> None:
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    terms = kl_to_reference(policy.log(), reference.log())
    assert (terms >= 0).all()
    exact = (policy * (policy / reference).log()).sum()
    torch.testing.assert_close((policy * terms).sum(), exact)
    torch.testing.assert_close(kl_to_reference(policy.log(), policy.log()), torch.zeros(3))


# ---- advantages of a group ---------------------------------------------------------------------------------------


def test_advantages_have_mean_zero_and_unit_spread_in_each_group() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 9.0], [4.0, 4.0, 4.0]])
    found, spread = group_advantages(rewards, torch.ones_like(rewards, dtype=torch.bool))
    assert spread.tolist() == [True, True, False]
    expected = torch.tensor([[-1.0, 0.0, 1.0], [-0.57735, -0.57735, 1.1547], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_advantages_that_are_not_scaled_keep_the_rewards_unit() -> None:
    found, _ = group_advantages(torch.tensor([[1.0, 2.0, 6.0]]), torch.ones(1, 3, dtype=torch.bool), scaled=False)
    assert found.tolist() == [[-2.0, -1.0, 3.0]]


def test_absent_samples_count_for_nothing() -> None:
    rewards = torch.tensor([[1.0, 3.0, float("nan")], [5.0, 1.0, 1.0]])
    present = torch.tensor([[True, True, False], [True, False, False]])
    found, spread = group_advantages(rewards, present)
    torch.testing.assert_close(found, torch.tensor([[-(0.5**0.5), 0.5**0.5, 0.0], [0.0, 0.0, 0.0]]))
    assert spread.tolist() == [True, False]


def test_a_reward_that_is_no_number_is_an_error() -> None:
    rewards = torch.tensor([[1.0, float("nan")], [float("inf"), 0.0]])
    with pytest.raises(OneRecError, match="2 of 4 are NaN or infinite"):
        group_advantages(rewards, torch.ones_like(rewards, dtype=torch.bool))
