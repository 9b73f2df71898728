"""Experts: routing and balancing by hand, the sum of a token's experts by a loop, loads over padding and processes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from onerec.model.configuration import OneRecConfig
from onerec.model.layers import FeedForward
from onerec.model.moe import MixtureOfExperts, Router, balance_experts, load_statistics
from onerec.model.onerec import OneRec
from tests.processes import started


def configuration(**changes: object) -> OneRecConfig:
    shape = {"codes_per_level": [5, 4], "num_items": 12, "d_model": 8, "num_heads": 2, "d_ff": 6, "dropout": 0.0}
    experts = {"num_experts": 5, "experts_per_token": 2, "expert_d_ff": 4}
    return OneRecConfig(**{**shape, **experts, **changes})


def make_mixture(**changes: object) -> MixtureOfExperts:
    torch.manual_seed(0)
    mixture = MixtureOfExperts(configuration(**changes))
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter)
    return mixture


def make_model(**changes: object) -> OneRec:
    torch.manual_seed(0)
    model = OneRec(configuration(**changes))
    model.encoder.code_rows_NL.copy_(torch.stack([torch.arange(12) % 5, 5 + torch.arange(12) % 4], dim=1))
    return model


def route(logits: list[float], bias: list[float], **changes: object) -> tuple[list[int], list[float]]:
    """Experts and weights of one token whose logits are given."""
    router = Router(configuration(num_experts=len(logits), d_model=1, num_heads=1, **changes))
    with torch.no_grad():
        router.weight_ED.copy_(torch.tensor(logits)[:, None])
        router.bias_E.copy_(torch.tensor(bias))
    chosen, weights = router.eval()(torch.ones(1, 1))
    return chosen[0].tolist(), weights[0].tolist()


def test_the_bias_chooses_and_the_score_weighs() -> None:
    """Sigmoids of 0, log 3 and -log 3 are 1/2, 3/4 and 1/4."""
    logits = [0.0, 1.0986123, -1.0986123]
    assert route(logits, [0.0, 0.0, 0.0]) == ([1, 0], pytest.approx([0.75, 0.5]))
    assert route(logits, [0.0, 0.0, 0.6]) == ([2, 1], pytest.approx([0.25, 0.75]))
    assert route(logits, [0.0, 0.0, 0.6], normalise_gates=True) == ([2, 1], pytest.approx([0.25, 0.75]))
    assert route(logits, [0.0, 0.0, 0.0], normalise_gates=True) == ([1, 0], pytest.approx([0.6, 0.4]))


def test_softmax_scores_are_over_all_experts() -> None:
    chosen, weights = route([0.0, 1.0986123, -1.0986123], [0.0, 0.0, 0.0], router_score="softmax")
    assert (chosen, weights) == ([1, 0], pytest.approx([9 / 13, 3 / 13]))  # of 1, 3 and 1/3


@pytest.mark.parametrize("num_shared_experts", [0, 2])
def test_every_token_gets_the_sum_of_its_experts(num_shared_experts: int) -> None:
    mixture, x = make_mixture(num_shared_experts=num_shared_experts), torch.randn(2, 7, 8)
    found = mixture(x)
    chosen_Tk, weights_Tk = mixture.router(x.flatten(0, 1))
    for token, (vector, experts, weights) in enumerate(zip(x.flatten(0, 1), chosen_Tk, weights_Tk, strict=True)):
        expected = torch.zeros(8) if mixture.shared is None else mixture.shared(vector)
        for expert, weight in zip(experts, weights, strict=True):
            gate, value = (vector @ mixture.experts.inner_EDF[expert]).chunk(2)
            expected = expected + weight * ((F.silu(gate) * value) @ mixture.experts.output_EFD[expert])
        torch.testing.assert_close(found.flatten(0, 1)[token], expected)


def test_one_expert_is_the_dense_feed_forward() -> None:
    mixture = make_mixture(num_experts=1, experts_per_token=1, normalise_gates=True)
    dense, x = FeedForward(8, 4, "swiglu"), torch.randn(3, 8)
    with torch.no_grad():
        dense.inner.weight.copy_(mixture.experts.inner_EDF[0].T)
        dense.output.weight.copy_(mixture.experts.output_EFD[0].T)
    torch.testing.assert_close(mixture(x), dense(x))


def test_a_token_is_the_same_in_any_company() -> None:
    mixture, x = make_mixture(), torch.randn(9, 8)
    torch.testing.assert_close(mixture(x)[4:5], mixture(x[4:5]))


def test_an_expert_without_tokens_has_gradients_of_zero() -> None:
    mixture, x = make_mixture(), torch.randn(6, 8, requires_grad=True)
    mixture.router.bias_E[3] = -10.0
    mixture(x).square().sum().backward()
    assert mixture.experts.inner_EDF.grad is not None
    used = mixture.experts.inner_EDF.grad.flatten(1).norm(dim=1) > 0
    assert used.tolist() == [True, True, True, False, True]
    assert mixture.router.weight_ED.grad is not None
    assert mixture.router.weight_ED.grad[3].abs().max() == 0
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_no_tokens_at_all() -> None:
    mixture = make_mixture()
    empty = torch.zeros(0, 8, requires_grad=True)
    mixture(empty).sum().backward()
    assert mixture.experts.output_EFD.grad is not None
    assert mixture.experts.output_EFD.grad.abs().max() == 0


def test_biases_move_against_the_load_by_hand() -> None:
    """Loads 3, 2 and 1: their mean is 2, so the middle one stays."""
    router = Router(configuration(num_experts=3, experts_per_token=1, d_model=3, num_heads=1)).train()
    with torch.no_grad():
        router.weight_ED.copy_(torch.eye(3))
    router(torch.eye(3)[[0, 0, 1]])
    router(torch.eye(3)[[0, 1, 2]])
    loads_RE = balance_experts(router, 0.25)
    assert loads_RE is not None
    assert loads_RE.tolist() == [[3, 2, 1]]
    assert router.bias_E.tolist() == [-0.25, 0.0, 0.25]
    assert load_statistics(loads_RE) == {"expert_load_max": 1.5, "expert_load_min": 0.5}
    loads_RE = balance_experts(router, 0.25)  # nothing was counted since
    assert loads_RE is not None
    assert loads_RE.tolist() == [[0, 0, 0]]
    assert router.bias_E.tolist() == [-0.25, 0.0, 0.25]


@pytest.mark.parametrize(("rate", "even"), [(0.02, True), (0.0, False)])
def test_loads_come_within_a_fifth_of_even_by_balancing_alone(rate: float, even: bool) -> None:
    router, x = Router(configuration(num_experts=8)).train(), torch.randn(400, 8, generator=torch.manual_seed(1)) + 0.5
    torch.nn.init.normal_(router.weight_ED, generator=torch.manual_seed(2))
    for _ in range(200):
        router(x)
        loads_RE = balance_experts(router, rate)
    assert loads_RE is not None
    statistics = load_statistics(loads_RE)
    assert (statistics["expert_load_max"] < 1.2) is even
    assert (statistics["expert_load_min"] > 0.8) is even


def test_a_plain_loop_balances_by_the_hook() -> None:
    model = make_model(balancing_rate=0.5).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    bias_E = model.decoder.blocks[0].feed_forward.router.bias_E
    assert all(bias_E is not parameter for parameter in model.parameters())
    for step in range(3):
        loss = model(input_ids=torch.tensor([[3, 9, 7]]), target_items=torch.tensor([[2, 8, 6, 1]])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        before = bias_E.clone()
        loads_RE = model.balance_experts()
        mean = loads_RE[0].double().mean()
        torch.testing.assert_close(bias_E - before, 0.5 * (mean - loads_RE[0]).sign().float(), msg=f"step {step}")
    assert bias_E.abs().max() > 0


def test_dense_models_have_nothing_to_balance() -> None:
    model = make_model(num_experts=0)
    assert model.balance_experts() is None
    assert not [name for name in model.state_dict() if "router" in name or "experts" in name]


def test_padding_and_evaluation_are_no_load() -> None:
    model = make_model(experts_in_context=True, num_dense_blocks=1).train()
    inputs = {
        "input_ids": torch.tensor([[3, 9, 7], [4, 0, 0]]),
        "target_items": torch.tensor([[2, 8, 6, 1], [3, 5, -100, -100]]),
    }
    model(**inputs)
    loads_RE = model.balance_experts()
    assert loads_RE.shape == (2, 5)  # one router a stack: its second block's
    context, decoder = (loads_E.sum().item() for loads_E in loads_RE)
    assert (context, decoder) == (2 * (4 + 2), 2 * 6 * 2)  # k times positions; k times targets times levels
    model(**inputs, counted=torch.tensor([[True], [False]]))
    assert [loads_E.sum().item() for loads_E in model.balance_experts()] == [2 * 4, 2 * 4 * 2]
    model(**inputs, counted=torch.tensor(False))
    assert model.balance_experts().sum() == 0
    model.eval()(**inputs)
    assert model.balance_experts().sum() == 0


def test_biases_are_saved_and_stay_float32(tmp_path: Path) -> None:
    model = make_model()
    router = model.decoder.blocks[1].feed_forward.router
    router.bias_E.copy_(torch.tensor([0.1, 0.2, 0.30001, 0.4, 0.5]))
    model.save_pretrained(tmp_path)
    loaded = OneRec.from_pretrained(tmp_path)
    loaded_bias_E = loaded.decoder.blocks[1].feed_forward.router.bias_E
    torch.testing.assert_close(loaded_bias_E, router.bias_E, rtol=0, atol=0)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    coarse = model.for_decoding("bfloat16").decoder.blocks[1].feed_forward
    assert coarse.experts.inner_EDF.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.router.bias_E, router.bias_E, rtol=0, atol=0)


def test_autocast_routes_in_float32() -> None:
    mixture, x = make_mixture(), torch.randn(64, 8)
    chosen_Tk, weights_Tk = mixture.router(x)
    with torch.autocast("cpu", torch.bfloat16):
        coarse_Tk, coarse_weights_Tk = mixture.router(x)
        mixed = mixture(x.bfloat16())
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), mixture(x), rtol=0.05, atol=0.5)
    mixed.sum().backward()
    assert {parameter.grad.dtype for parameter in mixture.parameters()} == {torch.float32}
    torch.testing.assert_close(coarse_Tk, chosen_Tk)
    torch.testing.assert_close(coarse_weights_Tk, weights_Tk, rtol=0, atol=0)


def shared_step(rank: int, num_processes: int, rendezvous: Path) -> Tensor:
    """One balancing step of a process; its tokens all go to expert `rank`."""
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=num_processes)
    router = Router(configuration(num_experts=3, experts_per_token=1, d_model=3, num_heads=1)).train()
    with torch.no_grad():
        router.weight_ED.copy_(torch.eye(3))
    router(torch.eye(3)[[rank] * 4])
    loads_RE = balance_experts(router, 0.25)
    assert loads_RE is not None
    distributed.destroy_process_group()
    return torch.cat([loads_RE.float(), router.bias_E[None]])


def test_processes_share_their_loads(tmp_path: Path) -> None:
    with started(save_shared_step, tmp_path) as other:
        ours = shared_step(0, 2, tmp_path / "rendezvous")
        other.join()
        assert other.exitcode == 0
    for found in (ours, torch.load(tmp_path / "other.pt")):
        torch.testing.assert_close(found, torch.tensor([[4.0, 4.0, 0.0], [-0.25, -0.25, 0.25]]))


def save_shared_step(folder: Path) -> None:
    torch.save(shared_step(1, 2, folder / "rendezvous"), folder / "other.pt")
