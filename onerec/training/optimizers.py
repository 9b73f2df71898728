"""Optimizers and learning-rate schedules of pre-training, torch's and transformers' own put together.

Muon (K. Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024) replaces the momentum of a matrix by
the nearest orthogonal one. As here, MuonRec and arXiv 2502.16982 leave embeddings, heads and norms to AdamW; the
update is scaled to AdamW's size (the latter's section 2.2), so that one learning rate and decay serve both.

Departures:
1. A stack of matrices, such as those of the experts of one layer, is orthogonalised matrix by matrix.
2. Queries, keys and values projected by one matrix are orthogonalised as one.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from onerec.errors import ConfigError
from onerec.model.onerec import OneRec
from onerec.training.settings import TrainingSettings

_ADAM_BETA1 = 0.9
_ID_HEADS = "id_heads."


def build_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Fused AdamW, alone or beside Muon for the blocks' matrices and SparseAdam for tables of sparse gradients."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    sparse = _sparse_tables(model)
    muon = settings.optimizer == "muon"
    matrices = [p for name, p in parameters.items() if muon and _is_hidden_matrix(name, p)]
    elsewhere = {id(p) for p in (*sparse, *matrices)}
    rest = {name: p for name, p in parameters.items() if id(p) not in elsewhere}
    parts: list[torch.optim.Optimizer] = [_adamw(rest, settings)]
    if matrices:
        parts.append(_muon(matrices, settings))
    if sparse:
        betas = (_ADAM_BETA1, settings.adam_beta2)
        parts.append(torch.optim.SparseAdam(sparse, lr=settings.learning_rate, betas=betas))
    return parts[0] if len(parts) == 1 else JointOptimizer(parts)


class JointOptimizer(torch.optim.Optimizer):
    """Several optimizers that step as one; their groups are shared, so a scheduler reaches all of them."""

    def __init__(self, parts: Iterable[torch.optim.Optimizer]) -> None:
        self._parts = list(parts)
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step every part; a closure is not supported."""
        assert closure is None
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of all parts."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the states that `state_dict` of the same parts gave."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]


def use_sparse_gradients(model: OneRec) -> None:
    """Let the item table's gradient hold the rows a step has read and no other.

    Raises:
        ConfigError: the model has no table of the kind, or every step reads all of it.
    """
    table = model.encoder.embedding.items
    if table is None:
        raise ConfigError("training.sparse_tables: the model has no item table. Set model.item_embedding to true.")
    if model.item_head is not None:
        raise ConfigError(
            "training.sparse_tables: the item head reads every row of the item table in every step. "
            "Set model.item_head_weight to 0 or sparse_tables to false."
        )
    table.sparse = True
    table.register_forward_hook(_own_gradient)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """torch's `clip_grad_norm_` where some gradients are sparse: scale all of them, return the norm they had."""
    parameters, values = list(parameters), []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.is_sparse:
            parameter.grad = gradient = _without_zero_rows(gradient)
        if gradient is not None:
            values.append(gradient.values() if gradient.is_sparse else gradient)
    norm = torch.nn.utils.get_total_norm(values)
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def schedule_arguments(settings: TrainingSettings, num_steps: int) -> dict[str, Any]:
    """Transformers' arguments for the schedule, warm-up included, over `num_steps` optimizer steps."""
    warmup, end = min(settings.warmup_steps, num_steps), settings.final_learning_rate_share
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "cosine": ("cosine_with_min_lr", {"min_lr_rate": end}),
        "linear": (
            "warmup_stable_decay",
            {"num_decay_steps": num_steps - warmup, "decay_type": "linear", "min_lr_ratio": end},
        ),
        "constant": ("constant_with_warmup", {}),
    }
    name, details = kinds[settings.schedule]
    return {"lr_scheduler_type": name, "lr_scheduler_kwargs": details, "warmup_steps": warmup}


def _without_zero_rows(gradient: Tensor) -> Tensor:
    """Coalesced, and without the rows that only padding or another process's stand-in window has read."""
    gradient = gradient.coalesce()
    kept = gradient.values().any(dim=1)
    rows, values = gradient.indices()[:, kept], gradient.values()[kept]
    return torch.sparse_coo_tensor(rows, values, gradient.shape, is_coalesced=True, check_invariants=False)


def _own_gradient(_module: nn.Module, _inputs: object, vectors: Tensor) -> None:
    """A sparse gradient's values are the vectors' own gradient, not a copy: data parallelism would scale it in place
    before whatever else reads it, such as the code table's backward pass."""
    if vectors.requires_grad:
        vectors.register_hook(torch.clone)


def _adamw(parameters: dict[str, nn.Parameter], settings: TrainingSettings) -> torch.optim.AdamW:
    """Norms and biases are not decayed; id heads have a learning rate of their own."""
    ids = [p for name, p in parameters.items() if name.startswith(_ID_HEADS)]
    others = [p for name, p in parameters.items() if not name.startswith(_ID_HEADS)]
    groups = _decay_groups(others, settings.learning_rate, settings.weight_decay)
    if ids:
        groups += _decay_groups(ids, settings.id_head_learning_rate, settings.weight_decay)
    return torch.optim.AdamW(groups, betas=(_ADAM_BETA1, settings.adam_beta2), fused=True)


def _decay_groups(parameters: list[nn.Parameter], learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    matrices, vectors = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
    return [
        {"params": matrices, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": vectors, "lr": learning_rate, "weight_decay": 0.0},
    ]


def _muon(matrices: list[nn.Parameter], settings: TrainingSettings) -> torch.optim.Muon:
    """Torch's Muon, which takes single matrices: of a stack it gets views, and before a step their gradients."""
    stacks = {p: [nn.Parameter(matrix) for matrix in p.detach().flatten(0, -3)] for p in matrices if p.dim() > 2}

    def hand_down_gradients(*_: Any) -> None:
        for stack, views in stacks.items():
            for index, view in enumerate(views):
                view.grad = None if stack.grad is None else stack.grad.flatten(0, -3)[index]

    singles = [p for p in matrices if p.dim() == 2]
    views = [view for stack in stacks.values() for view in stack]
    optimizer = torch.optim.Muon(
        [*singles, *views],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    optimizer.register_step_pre_hook(hand_down_gradients)
    return optimizer


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    inner = ".blocks." in name and ".router." not in name and not name.startswith(_ID_HEADS)
    return inner and parameter.dim() >= 2


def _sparse_tables(model: nn.Module) -> list[nn.Parameter]:
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding) and module.sparse]
    return [table.get_parameter("weight") for table in tables]
