"""Rollouts made apart from training: worker processes hold a copy of the policy and generate on order.

    trainer                                each worker
    order(number)     -- number -->        (waits)
                      -- weights -->       takes them over, where they are due
    goes on training                       generates its share of the rollout's prompts
    collect()         <-- items, scores -- sends it, and waits

So generation scales out on its own: its processes are as many as wished, on other hosts where torch.distributed
reaches them, and the policy that generates may be some steps older than the one that learns (the technical report,
arXiv 2506.13695, sends its inference service new weights every 1000 steps). The group's rank 0 is the trainer.

Prompts and noise follow from (seed, rollout, share) as in rl/experience.py: with fresh weights a single worker
generates exactly what the trainer itself would.

Shapes: B prompts of a rollout, G samples of a prompt.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from onerec.decoding.trie import Trie
from onerec.errors import ConfigError
from onerec.model.onerec import OneRec
from rl.rollout import PromptBatch, Prompts, Rollout, roll_out
from rl.settings import RolloutSettings

_TRAINER = 0
_STOP = -1


@dataclass(frozen=True)
class RolloutPlan:
    """What every process must know alike to generate without being told more than a number."""

    prompts: Prompts
    trie: Trie
    settings: RolloutSettings
    prompts_per_step: int
    seed: int

    def rows(self, number: int) -> np.ndarray:
        """The training rows (B,) that are the prompts of a rollout."""
        rng = np.random.default_rng([self.seed, number])
        return rng.choice(self.prompts.rows, self.prompts_per_step, replace=False)

    def generate(self, model: OneRec, number: int, share: int = 0, num_shares: int = 1) -> tuple[PromptBatch, Rollout]:
        """Generate for every `num_shares`-th prompt of a rollout, from `share` on; the model is left as it was."""
        was_training = model.training
        model.eval()
        prompts = self.prompts.batch(self.rows(number)[share::num_shares], model.device)
        generator = torch.Generator(model.device)
        generator.manual_seed(int(np.random.SeedSequence([self.seed, number, share]).generate_state(1)[0]))
        rollout = roll_out(model, prompts, self.trie, self.settings, generator)
        model.train(was_training)
        return prompts, rollout


class RolloutWorkers:
    """The trainer's side: orders rollouts of all workers and puts them together.

    Args:
        sync_every: rollouts from one sending of the weights to the next; 1 sends them with every order.
        group: of the trainer, rank 0, and at least one worker; None for all processes.

    Raises:
        ConfigError: no worker, or fewer prompts than workers.
    """

    def __init__(
        self, model: OneRec, plan: RolloutPlan, sync_every: int = 1, group: dist.ProcessGroup | None = None
    ) -> None:
        self._model, self._plan, self._sync_every, self._group = model, plan, sync_every, group
        self._num_workers = dist.get_world_size(group) - 1
        self._ordered: int | None = None
        self._num_orders = 0
        if not 1 <= self._num_workers <= plan.prompts_per_step:
            raise ConfigError(
                f"rollout workers: found {self._num_workers}, expected 1 to prompts_per_step = "
                f"{plan.prompts_per_step}. Start one process for the trainer and one for each worker."
            )

    def order(self, number: int) -> None:
        """Have a rollout generated; training may go on meanwhile. One at a time.

        Raises:
            ConfigError: the rollout ordered before has not been collected.
        """
        if self._ordered is not None:
            raise ConfigError(f"rollout {number}: rollout {self._ordered} is still to be collected.")
        weights_follow = self._num_orders % self._sync_every == 0
        _broadcast([torch.tensor([number, int(weights_follow)])], self._group)
        if weights_follow:
            _broadcast(_weights(self._model), self._group)
        self._ordered, self._num_orders = number, self._num_orders + 1

    def collect(self) -> tuple[PromptBatch, Rollout]:
        """Wait for the rollout that was ordered, its prompts in the plan's order.

        Raises:
            ConfigError: none was ordered.
        """
        if self._ordered is None:
            raise ConfigError("rollout: found none to collect. Order one first.")
        plan, device = self._plan, self._model.device
        prompts = plan.prompts.batch(plan.rows(self._ordered), device)
        shape = (len(prompts.rows_B), plan.settings.group_size)
        items_BG, present_BG = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.uint8)
        scores_BG = torch.zeros(shape)
        for worker in range(self._num_workers):
            for column in (items_BG, present_BG, scores_BG):
                part = torch.empty_like(column[worker :: self._num_workers], memory_format=torch.contiguous_format)
                dist.recv(part, group=self._group, group_src=worker + 1)
                column[worker :: self._num_workers] = part
        self._ordered = None
        return prompts, Rollout(items_BG.to(device), present_BG.bool().to(device), scores_BG.to(device))

    def close(self) -> None:
        """Send the workers home."""
        _broadcast([torch.tensor([_STOP, 0])], self._group)


def serve_rollouts(model: OneRec, plan: RolloutPlan, group: dist.ProcessGroup | None = None) -> int:
    """A worker's side: generate on order until told to stop; returns how many rollouts it had a share in.

    Args:
        model: of the trainer's configuration; its weights are replaced by the trainer's.
        plan: the same as the trainer's.
    """
    share, num_shares = dist.get_rank(group) - 1, dist.get_world_size(group) - 1
    order, served = torch.zeros(2, dtype=torch.int64), 0
    while True:
        _broadcast([order], group)
        number, weights_follow = order.tolist()
        if number == _STOP:
            return served
        if weights_follow:
            _broadcast(_weights(model), group)
        _, rollout = plan.generate(model, number, share, num_shares)
        for column in (rollout.items_BG, rollout.present_BG.to(torch.uint8), rollout.scores_BG):
            dist.send(column.cpu().contiguous(), group=group, group_dst=_TRAINER)
        served += 1


def _weights(model: OneRec) -> list[Tensor]:
    """Parameters and stored buffers, which share their memory with the model's."""
    return list(model.state_dict().values())


def _broadcast(tensors: list[Tensor], group: dist.ProcessGroup | None) -> None:
    """The trainer's tensors into everyone's, in place."""
    pending = [dist.broadcast(tensor, group=group, group_src=_TRAINER, async_op=True) for tensor in tensors]
    for work in pending:
        work.wait()
