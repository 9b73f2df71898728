"""Optimizers by hand and against torch's own: Muon's matrices, untouched rows of sparse tables, schedules."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import get_scheduler

from onerec.errors import ConfigError
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from onerec.training.optimizers import (
    JointOptimizer,
    build_optimizer,
    clip_gradients,
    schedule_arguments,
    use_sparse_gradients,
)
from onerec.training.settings import TrainingSettings

MUON = TrainingSettings(optimizer="muon", learning_rate=0.1, weight_decay=0.0)


def small_model(**options: float | bool) -> OneRec:
    torch.manual_seed(0)
    model = OneRec(OneRecConfig([3, 4], 12, d_model=16, d_ff=32, num_heads=2, max_history_items=8, **options))
    model.set_codes(np.stack([np.arange(12) // 4, np.arange(12) % 4], axis=1), "0" * 64)
    return model


class Experts(nn.Module):
    """The least that has a stack of matrices among its blocks."""

    def __init__(self, stack: Tensor) -> None:
        super().__init__()
        self.decoder = nn.Module()
        block = nn.Module()
        block.experts = nn.Parameter(stack.clone())
        self.decoder.blocks = nn.ModuleList([block])
        self.norm = nn.Parameter(torch.ones(3))


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_id_head_learns_at_a_rate_of_its_own_by_adamw(optimizer: str) -> None:
    model = small_model(item_head_weight=1.0, id_head_width=8)
    settings = TrainingSettings(optimizer=optimizer, learning_rate=0.1, id_head_learning_rate=0.3, weight_decay=0.0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    give_gradients(model, seed=1)
    build_optimizer(model, settings).step()
    for name, parameter in model.named_parameters():
        if optimizer == "adamw" or name.startswith("id_heads."):  # whose first step is the rate, by the gradient's sign
            rate = 0.3 if name.startswith("id_heads.") else 0.1
            torch.testing.assert_close(parameter, before[name] - rate * parameter.grad.sign(), rtol=1e-4, atol=1e-4)


def test_muon_orthogonalises_the_matrices_of_blocks_and_leaves_the_rest_to_adamw() -> None:
    model, by_adamw = small_model(), small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for each, settings in ((model, MUON), (by_adamw, MUON.model_copy(update={"optimizer": "adamw"}))):
        give_gradients(each, seed=1)
        build_optimizer(each, settings).step()
    expected = by_adamw.state_dict()
    num_matrices = 0
    for name, parameter in model.named_parameters():
        if ".blocks." not in name or parameter.dim() == 1:
            torch.testing.assert_close(parameter.data, expected[name], rtol=0, atol=0)
            continue
        num_matrices += 1
        left, singular, right = torch.linalg.svd(parameter.grad, full_matrices=False)
        update = (before[name] - parameter.data) / (0.1 * 0.2 * max(parameter.shape) ** 0.5)
        # Five rounds in bfloat16 bring all but the smallest singular values near 1 and leave the directions.
        strengths = torch.diag(left.T @ update @ right.T)
        assert strengths[singular > 0.1 * singular.max()].min() > 0.6
        assert strengths.max() < 1.3
        assert (update - left @ torch.diag(strengths) @ right).abs().max() < 0.02
    assert num_matrices == 2 * 4 + 2 * 7  # two blocks of the context's, two of the decoder's


def test_a_stack_is_orthogonalised_matrix_by_matrix() -> None:
    stack = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
    model = Experts(stack)
    singles = [nn.Parameter(matrix.clone()) for matrix in stack]
    together = build_optimizer(model, MUON)
    apart = torch.optim.Muon(singles, lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for seed in (1, 2):
        give_gradients(model, seed)
        for single, gradient in zip(singles, model.decoder.blocks[0].experts.grad, strict=True):
            single.grad = gradient.clone()
        together.step()
        apart.step()
    torch.testing.assert_close(model.decoder.blocks[0].experts.data, torch.stack([s.data for s in singles]))


def test_joint_optimizer_goes_on_from_its_state_and_obeys_a_schedule() -> None:
    model = small_model()
    optimizer = build_optimizer(model, MUON)
    assert isinstance(optimizer, JointOptimizer)
    give_gradients(model, seed=1)
    optimizer.step()
    twin = small_model()
    twin.load_state_dict(model.state_dict())
    resumed = build_optimizer(twin, MUON)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its_optimizer in ((model, optimizer), (twin, resumed)):
        torch.optim.lr_scheduler.LambdaLR(its_optimizer, lambda step: 0.5)
        give_gradients(each, seed=2)
        its_optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(twin.get_parameter(name), parameter, rtol=0, atol=0)
    assert {group["lr"] for group in resumed.param_groups} == {0.05}


def sparse_and_dense_table() -> tuple[nn.Embedding, nn.Embedding]:
    torch.manual_seed(0)
    sparse, dense = nn.Embedding(6, 4, sparse=True), nn.Embedding(6, 4)
    dense.load_state_dict(sparse.state_dict())
    return sparse, dense


def test_rows_without_gradient_stay_and_the_others_move_as_in_a_dense_update() -> None:
    settings = TrainingSettings(learning_rate=0.1, weight_decay=0.0)
    sparse, dense = sparse_and_dense_table()
    before = sparse.weight.detach().clone()
    optimizers = [build_optimizer(table, settings) for table in (sparse, dense)]
    for rows in ([1, 4, 4], [1, 4, 1]):
        for table, optimizer in zip((sparse, dense), optimizers, strict=True):
            table.zero_grad()
            (table(torch.tensor(rows)) ** 3).sum().backward()
            optimizer.step()
    torch.testing.assert_close(sparse.weight, dense.weight, rtol=1e-5, atol=1e-6)
    untouched = [0, 2, 3, 5]
    torch.testing.assert_close(sparse.weight[untouched], before[untouched], rtol=0, atol=0)
    row = sparse.weight[4].detach().clone()
    sparse.zero_grad()
    sparse(torch.tensor([1])).sum().backward()
    optimizers[0].step()
    torch.testing.assert_close(sparse.weight[4], row, rtol=0, atol=0)  # Adam's momentum does not move it either


def test_sparse_gradients_are_clipped_like_dense_ones() -> None:
    tables = sparse_and_dense_table()
    for table in tables:
        (table(torch.tensor([1, 4, 4, 0])) * torch.tensor([[1.0], [2.0], [3.0], [0.0]])).sum().backward()
    sparse, dense = tables
    norm = clip_gradients(sparse.parameters(), 0.5)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(dense.parameters(), 0.5)))
    assert norm == pytest.approx((4 * 1**2 + 4 * 5**2) ** 0.5)
    torch.testing.assert_close(sparse.weight.grad.to_dense(), dense.weight.grad)
    assert sparse.weight.grad.coalesce().indices().tolist() == [[1, 4]]  # row 0 was read, but its gradient is zero


def test_sparse_gradient_does_not_share_its_memory() -> None:
    """Else what scales it before the code table's backward pass has run scales that one's gradient too."""
    model, dense = small_model(item_head_weight=0.0), small_model(item_head_weight=0.0)
    use_sparse_gradients(model)
    model.encoder.embedding.items.weight.register_post_accumulate_grad_hook(_zero_gradient)
    for each in (model, dense):
        each.eval()(input_ids=torch.tensor([[1, 5, 9]]), target_items=torch.tensor([[4, 8, 3]])).loss.backward()
    torch.testing.assert_close(model.encoder.embedding.codes.weight.grad, dense.encoder.embedding.codes.weight.grad)


def _zero_gradient(parameter: Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad._values().zero_()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"item_head_weight": 1.0}, "model.item_head_weight to 0"),
        ({"item_embedding": False, "item_head_weight": 0.0}, "no item table"),
    ],
)
def test_tables_without_sparse_gradients_are_refused(options: dict[str, float | bool], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        use_sparse_gradients(small_model(**options))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", {2: 1.0, 6: 0.55, 10: 0.1}),  # half-way: the mean of start and end
        ("linear", {0: 0.1, 1: 0.55, 2: 1.0, 4: 0.775, 6: 0.55, 10: 0.1}),
        ("constant", {0: 0.0, 1: 0.5, 2: 1.0, 6: 1.0, 10: 1.0}),
    ],
)
def test_schedules_by_hand(schedule: str, expected: dict[int, float]) -> None:
    settings = TrainingSettings(schedule=schedule, warmup_steps=2, final_learning_rate_share=0.1)
    arguments = schedule_arguments(settings, 10)
    scale = scale_of(arguments["lr_scheduler_type"], arguments["warmup_steps"], arguments["lr_scheduler_kwargs"])
    assert {step: scale(step) for step in expected} == pytest.approx(expected)


def scale_of(name: str, warmup: int, details: dict[str, object]) -> Callable[[int], float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    return get_scheduler(name, optimizer, warmup, 10, details).lr_lambdas[0]


def test_warm_up_longer_than_the_training_ends_with_it() -> None:
    assert schedule_arguments(TrainingSettings(warmup_steps=200), 10)["warmup_steps"] == 10
