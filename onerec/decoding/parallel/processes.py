"""The processes that decode together: those that torchrun has started, of which the first leads."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import torch
from torch import Tensor, distributed

_LONGEST_WAIT = timedelta(days=365)  # for what the leader asks next; where it fails, torchrun ends the others


@dataclass(frozen=True)
class Processes:
    """This process's place among all; every call but the leader's own is made by all of them together."""

    rank: int
    number: int
    device: torch.device

    @staticmethod
    def are_several() -> bool:
        """Whether torchrun has started this process and others."""
        return int(os.environ.get("WORLD_SIZE", "1")) > 1

    @classmethod
    def join(cls) -> Self:
        """The group of all processes that torchrun has started, each with an accelerator of its own where there are."""
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        if device.type != "cpu":
            device = torch.device(device.type, int(os.environ["LOCAL_RANK"]))
            torch.accelerator.set_device_index(device)
        if not distributed.is_initialized():
            own = distributed.get_default_backend_for_device(device)
            backend = own if device.type == "cpu" else f"cpu:gloo,{device.type}:{own}"  # messages go by gloo
            distributed.init_process_group(backend, timeout=_LONGEST_WAIT)
        return cls(distributed.get_rank(), distributed.get_world_size(), device)

    @property
    def is_leader(self) -> bool:
        """Whether this is the process that reads and writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, in the place of this one's."""
        distributed.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """All processes' tensors of one shape (R, ...)."""
        gathered = tensor.new_empty(self.number, *tensor.shape)
        distributed.all_gather([*gathered], tensor.contiguous())
        return gathered

    def tell(self, message: object) -> None:
        """The leader's: give the others what they wait for in `hear`."""
        distributed.broadcast_object_list([message], device=torch.device("cpu"))

    def hear(self) -> Any:
        """What the leader tells, None where it has gone: an object of this project's own, never one of a user's."""
        heard = [None]
        try:
            distributed.broadcast_object_list(heard, device=torch.device("cpu"))
        except RuntimeError:  # gloo's, where a process has ended
            return None
        return heard[0]

    def dismiss(self) -> None:
        """The leader's: let the others go, unless it has left them."""
        if distributed.is_initialized():
            self.tell(None)
            self.leave()

    def leave(self) -> None:
        """Be done with the others."""
        distributed.destroy_process_group()
