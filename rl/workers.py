"""Rollouts made apart from training: worker processes hold a copy of the policy and generate on order.

    trainer                                each worker
    order(number)     -- number -->        (waits)
                      -- weights -->       takes them over, where they are due
    goes on training                       generates its share of the rollout's prompts
    collect()         <-- items, scores -- sends it, and waits

So generation scales out on its own, and the policy that generates may be some steps older than the one that learns (the
technical report, arXiv 2506.13695, sends its inference service new weights every 1000 steps). Every trainer process has
workers of its own, and a group of torch.distributed with them in which it has rank 0.

Prompts and noise follow from (seed, rollout, share) as in rl/generation.py: with fresh weights a single worker
generates exactly what the trainer itself would.

Shapes: B prompts of a trainer's share, G samples of a prompt.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process, set_forkserver_preload
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor
from torch import distributed as dist

from kernels.denormals import flushed_denormals
from onerec.config import RunConfig
from onerec.errors import ConfigError, OneRecError
from onerec.model.onerec import OneRec
from onerec.pipeline import Pipeline
from onerec.training.pretraining import load_pretrained
from onerec.training.processes import LONGEST_WAIT
from rl.generation import RolloutPlan
from rl.rollout import PromptBatch, Rollout
from rl.settings import AlignSettings

_TRAINER, _STOP, _TAG = 0, -1, 0
_POLL_SECONDS = 0.1
_JOIN_SECONDS = 10.0
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Shares:
    """Which of a rollout's prompts are whose: trainer r of W, with N workers each, has those of share r of W.

    Its worker w has share r + W * w of W * N.
    """

    rank: int
    num_trainers: int
    num_workers: int

    def of_worker(self, worker: int) -> tuple[int, int]:
        """Share of a worker, and how many there are."""
        return self.rank + self.num_trainers * worker, self.num_trainers * self.num_workers


class RolloutWorkers:
    """The trainer's side: orders rollouts of all its workers and puts them together; a `Generate`.

    Where weights are sent more seldom than rollouts are ordered, the next one is ordered as soon as one is there, so
    that it is made while the policy learns.
    """

    def __init__(self, plan: RolloutPlan, group: dist.ProcessGroup, rank: int = 0, num_trainers: int = 1) -> None:
        self._plan, self._group = plan, group
        self._shares = Shares(rank, num_trainers, group.size() - 1)
        self._ordered: int | None = None
        self._has_weights = False
        settings = plan.settings
        self._num_rollouts = -(-settings.steps // settings.rollout.updates)

    def __call__(self, model: OneRec, number: int) -> tuple[PromptBatch, Rollout]:
        """This trainer's prompts of a rollout and what was generated for them."""
        if self._ordered is None:
            self.order(model, number)
        assert self._ordered == number, "rollouts are asked for one after another"
        prompts, rollout = self.collect(model)
        following = number + 1
        if following % self._plan.settings.rollout.sync_every and following < self._num_rollouts:
            self.order(model, following)
        return prompts, rollout

    def order(self, model: OneRec, number: int) -> None:
        """Have a rollout generated; training may go on meanwhile."""
        sends = not self._has_weights or number % self._plan.settings.rollout.sync_every == 0
        _broadcast([torch.tensor([number, int(sends)])], self._group)
        if sends:
            _broadcast(_weights(model), self._group)
        self._ordered, self._has_weights = number, True

    def collect(self, model: OneRec) -> tuple[PromptBatch, Rollout]:
        """Wait for the rollout that was ordered, its prompts in the plan's order."""
        assert self._ordered is not None, "nothing was ordered"
        plan, shares = self._plan, self._shares
        rows_B = plan.rows(self._ordered)[shares.rank :: shares.num_trainers]
        prompts = plan.prompts.batch(rows_B, model.device)
        columns = _empty_columns(len(rows_B), plan.settings)
        for worker in range(shares.num_workers):
            for column in columns:
                part = torch.empty_like(column[worker :: shares.num_workers], memory_format=torch.contiguous_format)
                self._group.recv([part], worker + 1, _TAG).wait()
                column[worker :: shares.num_workers] = part
        self._ordered = None
        items_BG, present_BG, scores_BG, *behaviour_BG = (column.to(model.device) for column in columns)
        return prompts, Rollout(items_BG, present_BG.bool(), scores_BG, *behaviour_BG)

    def close(self) -> None:
        """Send the workers home."""
        _broadcast([torch.tensor([_STOP, 0])], self._group)


def serve_rollouts(model: OneRec, plan: RolloutPlan, group: dist.ProcessGroup, share: int, num_shares: int) -> int:
    """A worker's side: generate on order until told to stop; returns how many rollouts it had a share in.

    Args:
        model: of the trainer's configuration; its weights are replaced by the trainer's.
        plan: the same as the trainer's.
    """
    order, served = torch.zeros(2, dtype=torch.int64), 0
    while True:
        _broadcast([order], group)
        number, weights_follow = order.tolist()
        if number == _STOP:
            return served
        if weights_follow:
            _broadcast(_weights(model), group)
        _, rollout = plan.generate(model, number, share, num_shares)
        columns = [rollout.items_BG, rollout.present_BG.to(torch.uint8), rollout.scores_BG]
        columns += [] if rollout.behaviour_BG is None else [rollout.behaviour_BG]
        for column in columns:
            group.send([column.cpu().contiguous()], _TRAINER, _TAG).wait()
        served += 1


def join_group(rendezvous: Path, rank: int, size: int) -> dist.ProcessGroup:
    """The group of one trainer and its workers, apart from that of the trainers; waits until all have come."""
    group = dist.ProcessGroupGloo(dist.FileStore(str(rendezvous), size), rank, size, LONGEST_WAIT)
    return cast(dist.ProcessGroup, group)  # whose methods it has


# ---- the processes -------------------------------------------------------------------------------------------------


@contextmanager
def started_workers(pipeline: Pipeline, plan: RolloutPlan) -> Iterator[RolloutWorkers]:
    """The workers of this trainer process, which end with the block.

    Raises:
        ConfigError: fewer prompts than workers.
        OneRecError: one of them has ended before its time.
    """
    processes, num_workers = pipeline.processes, plan.settings.rollout.workers
    shares = Shares(processes.process_index, processes.num_processes, num_workers)
    if num_workers * shares.num_trainers > plan.settings.prompts_per_step:
        raise ConfigError(
            f"align.rollout.workers: found {num_workers} for each of {shares.num_trainers} trainers, expected at most "
            f"prompts_per_step = {plan.settings.prompts_per_step} in all."
        )
    with tempfile.TemporaryDirectory(prefix="onerec-rollouts-") as folder:
        started = [_start(pipeline, plan.settings, shares, worker, Path(folder)) for worker in range(num_workers)]
        try:
            _await_ready(started, Path(folder))
            group = join_group(Path(folder) / "rendezvous", _TRAINER, num_workers + 1)
            workers = RolloutWorkers(plan, group, shares.rank, shares.num_trainers)
            yield workers
            workers.close()
            for process in started:
                process.join(_JOIN_SECONDS)
        except RuntimeError as error:  # torch.distributed has no other for a connection that is gone
            _explain(started, error)
            raise
        finally:
            for process in started:
                process.terminate()
                process.join()


def _start(pipeline: Pipeline, settings: AlignSettings, shares: Shares, worker: int, folder: Path) -> BaseProcess:
    threads = max(1, torch.get_num_threads() // shares.num_workers)
    arguments = (pipeline.config, pipeline.folder.parent, settings, shares, worker, folder, threads)
    process = _prepared_context().Process(
        target=_work, args=(*arguments, pipeline.processes.device), name=f"rollout worker {worker}", daemon=True
    )
    process.start()
    return process


def _prepared_context() -> ForkServerContext:
    """What starts workers: a server that has their imports behind it and forks each of them from itself.

    The server is a Python of its own, not a copy of the trainer and of what the trainer holds on a GPU. It imports and
    computes nothing, and no import asks the CUDA driver for anything, so that a worker may: a process forked from one
    that has done so may not.
    """
    set_forkserver_preload([__name__])
    return get_context("forkserver")


@flushed_denormals()
def _work(
    config: RunConfig,
    runs: Path,
    settings: AlignSettings,
    shares: Shares,
    worker: int,
    folder: Path,
    threads: int,
    device: Any,  # a torch.device, which the types of transformers do not know
) -> None:
    """A worker's whole life."""
    for name in _TORCHRUN:  # its trainer's place among the trainers is not its own
        os.environ.pop(name, None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever stops the training stops its trainer, who ends the workers
    torch.set_num_threads(threads)
    try:
        pipeline = Pipeline.open(config, runs, Console(quiet=True))
        model = load_pretrained(pipeline.folder / "pretrain", pipeline.table).to(device)
        plan = RolloutPlan.open(pipeline, model, settings)
        (folder / f"ready-{worker}").touch()
        group = join_group(folder / "rendezvous", worker + 1, shares.num_workers + 1)
        serve_rollouts(model, plan, group, *shares.of_worker(worker))
    except OneRecError as error:
        sys.exit(f"rollout worker {worker}: error: {error}")
    except RuntimeError:
        trainer = parent_process()
        if trainer is not None and trainer.is_alive():
            raise


def _await_ready(processes: list[BaseProcess], folder: Path) -> None:
    """Wait until every worker has read what it needs; none of them waits for one that never comes."""
    while not all((folder / f"ready-{worker}").exists() for worker in range(len(processes))):
        _require_alive(processes)
        time.sleep(_POLL_SECONDS)


def _explain(processes: list[BaseProcess], error: RuntimeError) -> None:
    """Say which worker has ended, where one has."""
    for process in processes:
        process.join(_POLL_SECONDS)
    _require_alive(processes, error)


def _require_alive(processes: list[BaseProcess], cause: Exception | None = None) -> None:
    ended = [process for process in processes if process.exitcode is not None]
    if ended:
        codes = ", ".join(f"{process.name}: {process.exitcode}" for process in ended)
        raise OneRecError(
            f"rollouts: found {len(ended)} of {len(processes)} workers ended (exit status of {codes}), expected all to "
            "generate until training ends. What they said is above; -9 is mostly a lack of memory. Start the same "
            "command again to go on from the last checkpoint, with fewer align.rollout.workers where memory is short."
        ) from cause


# ---- what is sent --------------------------------------------------------------------------------------------------


def _empty_columns(num_prompts: int, settings: AlignSettings) -> list[Tensor]:
    """Room for items, which of them are present, scores and, off-policy, behaviour."""
    shape = (num_prompts, settings.rollout.group_size)
    columns = [torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape)]
    return [*columns, torch.zeros(shape)] if settings.rollout.off_policy else columns


def _weights(model: OneRec) -> list[Tensor]:
    """Parameters and stored buffers, which share their memory with the model's."""
    return list(model.state_dict().values())


def _broadcast(tensors: list[Tensor], group: dist.ProcessGroup) -> None:
    """The trainer's tensors into everyone's, in place."""
    pending = [group.broadcast(tensor, _TRAINER) for tensor in tensors]
    for work in pending:
        work.wait()
