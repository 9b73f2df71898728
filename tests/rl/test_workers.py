"""Rollouts of other processes: equal to the trainer's own after every sending of weights, and only then."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

from onerec.data.histories import Histories, Split
from onerec.decoding.trie import Trie
from onerec.errors import ConfigError
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from rl.experience import ExperienceMaker
from rl.policy import Policy
from rl.rollout import PromptBatch, Prompts, Rollout
from rl.settings import AlignSettings, RolloutSettings
from rl.workers import RolloutPlan, RolloutWorkers, serve_rollouts

ROOT = Path(__file__).parent.parent.parent
SIZES, NUM_ITEMS, NUM_USERS, LENGTH = (3, 4, 2), 14, 12, 7


def make_model(seed: int) -> OneRec:
    codes_NL = np.random.default_rng(0).integers(0, SIZES, (NUM_ITEMS, len(SIZES)))
    torch.manual_seed(seed)
    model = OneRec(OneRecConfig(SIZES, NUM_ITEMS, d_model=16, d_ff=32, max_history_items=4, dropout=0.5))
    model.set_codes(codes_NL, "hash")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def make_plan() -> RolloutPlan:
    codes_NL = np.random.default_rng(0).integers(0, SIZES, (NUM_ITEMS, len(SIZES)))
    items = (np.arange(NUM_USERS)[:, None] + np.arange(LENGTH)) % NUM_ITEMS
    splits = np.full(items.size, Split.TRAIN, dtype=np.uint8)
    offsets = np.arange(NUM_USERS + 1, dtype=np.int64) * LENGTH
    histories = Histories(offsets, items.astype(np.int32).ravel(), np.arange(items.size), splits)
    trie = Trie.from_table(codes_NL, SIZES, np.arange(NUM_ITEMS))
    return RolloutPlan(Prompts.of(histories, 4), trie, RolloutSettings(group_size=5), prompts_per_step=7, seed=3)


def join(rank: int, num_processes: int, rendezvous: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=num_processes,
        timeout=timedelta(seconds=300),
    )


@contextmanager
def workers(num_workers: int, folder: Path) -> Iterator[list[subprocess.Popen]]:
    """Worker processes, whose models begin with other weights, and this process as their trainer."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    places = [[str(rank), str(num_workers + 1), str(folder)] for rank in range(1, num_workers + 1)]
    processes = [subprocess.Popen([sys.executable, __file__, *place], env=environment) for place in places]
    join(0, num_workers + 1, folder / "rendezvous")
    try:
        yield processes
        assert [process.wait(timeout=300) for process in processes] == [0] * num_workers
    finally:
        dist.destroy_process_group()
        for process in processes:
            process.kill()


def assert_same(found: Rollout, expected: Rollout) -> None:
    torch.testing.assert_close(found.items_BG, expected.items_BG, rtol=0, atol=0)
    torch.testing.assert_close(found.present_BG, expected.present_BG, rtol=0, atol=0)
    torch.testing.assert_close(found.scores_BG, expected.scores_BG, rtol=0, atol=0)


def change(model: OneRec) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)


def in_shares(model: OneRec, plan: RolloutPlan, number: int, num_shares: int) -> Rollout:
    """What the workers should send, generated in this process: every share by itself, in the prompts' order."""
    shape = (plan.prompts_per_step, plan.settings.group_size)
    items_BG, scores_BG = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    present_BG = torch.zeros(shape, dtype=torch.bool)
    for share in range(num_shares):
        rows, part = slice(share, None, num_shares), plan.generate(model, number, share, num_shares)[1]
        items_BG[rows], present_BG[rows], scores_BG[rows] = part.items_BG, part.present_BG, part.scores_BG
    return Rollout(items_BG, present_BG, scores_BG)


def test_workers_generate_what_this_process_would_after_each_sending_of_weights(tmp_path: Path) -> None:
    model, plan, num_workers = make_model(seed=0), make_plan(), 2
    model.train()
    with workers(num_workers, tmp_path):
        remote = RolloutWorkers(model, plan, sync_every=2)
        expected = in_shares(model, plan, 0, num_workers)
        remote.order(0)
        with pytest.raises(ConfigError, match="rollout 0 is still to be collected"):
            remote.order(1)
        prompts, found = remote.collect()
        np.testing.assert_array_equal(prompts.rows_B, plan.rows(0))
        assert_same(found, expected)

        old = in_shares(model, plan, 1, num_workers)
        change(model)  # the second of two orders goes without weights, so the workers keep the old ones
        remote.order(1)
        assert_same(remote.collect()[1], old)
        assert not torch.equal(in_shares(model, plan, 1, num_workers).scores_BG, old.scores_BG)

        expected = in_shares(model, plan, 2, num_workers)
        remote.order(2)
        change(model)  # training that goes on while they generate does not reach them
        assert_same(remote.collect()[1], expected)
        assert model.training
        with pytest.raises(ConfigError, match="found none to collect"):
            remote.collect()
        remote.close()
    assert [(tmp_path / f"served-{place + 1}").read_text() for place in range(num_workers)] == ["3"] * num_workers


def test_the_plan_is_what_the_align_stage_generates_in_process() -> None:
    model, plan = make_model(seed=0), make_plan()
    settings = AlignSettings(prompts_per_step=plan.prompts_per_step, rollout=plan.settings)

    def reward(prompts: PromptBatch, items_BG: np.ndarray, scores_BG: np.ndarray) -> np.ndarray:
        return items_BG.astype(np.float32)

    maker = ExperienceMaker(plan.prompts, plan.trie, reward, settings, plan.seed, rank=0, num_processes=1)
    experience, judged = maker.make(Policy(model, plan.trie, settings), model, number=6)
    prompts, expected = plan.generate(model, number=6)
    np.testing.assert_array_equal(experience.prompts.rows_B, prompts.rows_B)
    assert_same(judged.rollout, expected)


def test_a_trainer_alone_is_refused(tmp_path: Path) -> None:
    join(0, 1, tmp_path / "rendezvous")
    try:
        with pytest.raises(ConfigError, match="rollout workers: found 0, expected 1 to prompts_per_step = 7"):
            RolloutWorkers(make_model(0), make_plan())
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    place, size, where = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    join(place, size, where / "rendezvous")
    served = serve_rollouts(make_model(seed=100 + place), make_plan())
    (where / f"served-{place}").write_text(str(served))
    dist.destroy_process_group()
