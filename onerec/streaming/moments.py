"""What an optimizer remembers of each row, carried from one partition to the next.

Rows of items that are new have nothing to remember: their moments start at zero. Adam corrects for a start at zero by
the steps of the whole table, so a new row's first step is (1 - beta1) / sqrt(1 - beta2) of a full one.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All numbers that an optimizer holds, by the place of their parameter: `12.exp_avg`."""
    return {
        f"{place}.{name}": value.detach().clone() if isinstance(value, Tensor) else torch.tensor(value)
        for place, entries in _entries(optimizer.state_dict())
        for name, value in entries.items()
    }


def restore_moments(optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    """Take what `moments_of` gave of an optimizer of the same parts, whose tables may have had fewer rows."""
    state, first = optimizer.state_dict(), 0
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for part in _parts(state):
        count = sum(len(group["params"]) for group in part["param_groups"])
        part["state"] = {
            index: {name: _grown(value, parameters[first + index]) for name, value in entries.items()}
            for index in range(count)
            if (entries := _of_place(moments, first + index))
        }
        first += count
    optimizer.load_state_dict(state)


def _entries(state: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Place over all parts, and what is held of it."""
    first = 0
    for part in _parts(state):
        for index, entries in part["state"].items():
            yield first + index, entries
        first += sum(len(group["params"]) for group in part["param_groups"])


def _parts(state: dict[str, Any]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = state.get("parts", [state])
    return parts


def _of_place(moments: dict[str, Tensor], place: int) -> dict[str, Tensor]:
    prefix = f"{place}."
    return {name.removeprefix(prefix): value for name, value in moments.items() if name.startswith(prefix)}


def _grown(moment: Tensor, parameter: Tensor) -> Any:
    """A moment with zeros for the rows that its parameter has gained; counts of steps as they are."""
    if moment.dim() == 0:
        return moment.item() if moment.dtype == torch.int64 else moment
    num_new = len(parameter) - len(moment)
    return torch.cat([moment, moment.new_zeros(num_new, *moment.shape[1:])]) if num_new else moment
