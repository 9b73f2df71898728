"""Rollouts of other processes: equal to the trainer's own after every sending of weights, and only then."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist

from onerec.data.histories import Histories, Split
from onerec.decoding.trie import Trie
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from rl.generation import RolloutPlan
from rl.rollout import Prompts, Rollout
from rl.settings import AlignSettings
from rl.workers import RolloutWorkers, Shares, join_group, serve_rollouts
from tests.processes import started

SIZES, NUM_ITEMS, NUM_USERS, LENGTH = (3, 4, 2), 14, 12, 7
NUM_WORKERS = 2


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
    settings = AlignSettings.model_validate(
        {
            "steps": 3,
            "prompts_per_step": 7,
            "rollout": {"group_size": 5, "workers": NUM_WORKERS, "sync_every": 2},
            "monitor": {"every_steps": 4},
        }
    )
    return RolloutPlan(Prompts.of(histories, 4), trie, settings, seed=3)


@contextmanager
def workers(folder: Path) -> Iterator[dist.ProcessGroup]:
    """Worker processes, whose models begin with other weights, and the group in which this process is their trainer."""
    with ExitStack() as stack:
        processes = [stack.enter_context(started(serve, worker, folder)) for worker in range(NUM_WORKERS)]
        yield join_group(folder / "rendezvous", 0, NUM_WORKERS + 1)
        for process in processes:
            process.join(timeout=300)
        assert [process.exitcode for process in processes] == [0] * NUM_WORKERS


def serve(worker: int, folder: Path) -> None:
    """A worker's life, which leaves the number of its rollouts in a file."""
    group = join_group(folder / "rendezvous", worker + 1, NUM_WORKERS + 1)
    served = serve_rollouts(make_model(seed=100 + worker), make_plan(), group, worker, NUM_WORKERS)
    (folder / f"served-{worker}").write_text(str(served))


def assert_same(found: Rollout, expected: Rollout) -> None:
    torch.testing.assert_close(found.items_BG, expected.items_BG, rtol=0, atol=0)
    torch.testing.assert_close(found.present_BG, expected.present_BG, rtol=0, atol=0)
    torch.testing.assert_close(found.scores_BG, expected.scores_BG, rtol=0, atol=0)
    torch.testing.assert_close(found.behaviour_BG, expected.behaviour_BG, rtol=0, atol=0)


def change(model: OneRec) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)


def in_shares(model: OneRec, plan: RolloutPlan, number: int) -> Rollout:
    """What the workers should send, generated in this process: every share by itself, in the prompts' order."""
    shape = (plan.settings.prompts_per_step, plan.settings.rollout.group_size)
    items_BG, scores_BG, behaviour_BG = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape), torch.zeros(shape)
    present_BG = torch.zeros(shape, dtype=torch.bool)
    for share in range(NUM_WORKERS):
        rows, part = slice(share, None, NUM_WORKERS), plan.generate(model, number, share, NUM_WORKERS)[1]
        items_BG[rows], present_BG[rows], scores_BG[rows] = part.items_BG, part.present_BG, part.scores_BG
        behaviour_BG[rows] = part.behaviour_BG
    return Rollout(items_BG, present_BG, scores_BG, behaviour_BG)


def test_workers_generate_what_this_process_would_after_each_sending_of_weights(tmp_path: Path) -> None:
    model, plan = make_model(seed=0), make_plan()
    model.train()
    with workers(tmp_path) as group:
        remote = RolloutWorkers(plan, group)
        first, second = in_shares(model, plan, 0), in_shares(model, plan, 1)
        prompts, found = remote(model, 0)  # and orders the next one, which goes without weights
        np.testing.assert_array_equal(prompts.rows_B, plan.rows(0))
        assert_same(found, first)
        change(model)  # training that goes on while they generate does not reach them
        assert_same(remote(model, 1)[1], second)
        assert not torch.equal(in_shares(model, plan, 1).behaviour_BG, second.behaviour_BG)
        third = in_shares(model, plan, 2)
        assert_same(remote(model, 2)[1], third)  # the newest weights, sent when it was asked for
        assert model.training
        remote.close()
    assert [(tmp_path / f"served-{worker}").read_text() for worker in range(NUM_WORKERS)] == ["3"] * NUM_WORKERS


def test_the_shares_of_trainers_and_their_workers_part_the_prompts() -> None:
    """Two trainers with three workers each: what a trainer's workers have is what the trainer is to learn from."""
    rows, everyone = np.arange(19), []
    for rank in range(2):
        shares = Shares(rank, num_trainers=2, num_workers=3)
        own = np.full(len(rows[rank::2]), -1)
        for worker in range(3):
            share, num_shares = shares.of_worker(worker)
            own[worker::3] = rows[share::num_shares]
        np.testing.assert_array_equal(own, rows[rank::2])
        everyone.extend(own)
    assert sorted(everyone) == rows.tolist()
