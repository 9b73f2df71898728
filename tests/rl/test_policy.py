"""What a step computes: scores without dropout beside a supervised loss with it, and the loss by hand."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from onerec.data.batches import many_target_windows
from onerec.errors import ConfigError, DataError
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from rl.experience import ExperienceMaker
from rl.generation import RolloutPlan
from rl.policy import Experience, Policy, PolicyOutput, surrogate
from rl.rollout import PromptBatch, Prompts, Rollout
from rl.scoring import Scores
from rl.settings import AlignSettings
from rl.supervision import SupervisedWindows
from rl.trainer import policy_loss

NAN = float("nan")


def rewards_of_index(prompts: PromptBatch, items_BG: np.ndarray, scores_BG: np.ndarray) -> np.ndarray:
    return items_BG.astype(np.float32)


def make_maker(toy, settings: AlignSettings, rank: int = 0, num_processes: int = 1) -> ExperienceMaker:
    plan = RolloutPlan(Prompts.of(toy.histories, 4), toy.trie, settings, seed=7)
    generate = partial(plan.generate, share=rank, num_shares=num_processes)
    return ExperienceMaker(plan, generate, rewards_of_index, rank, num_processes)


def settings_of(**changes: object) -> AlignSettings:
    return AlignSettings.model_validate({"prompts_per_step": 8, "rollout": {"group_size": 6}, **changes})


# ---- experience --------------------------------------------------------------------------------------------------


def test_the_same_number_gives_the_same_experience_and_another_gives_another(toy) -> None:
    maker = make_maker(toy, settings_of())
    policy = Policy(toy.model, toy.trie, settings_of())
    first, again, other = (maker.make(policy, toy.model, number)[0] for number in (3, 3, 4))
    torch.testing.assert_close(first.rollout.items_BG, again.rollout.items_BG)
    assert first.prompts.rows_B.tolist() == again.prompts.rows_B.tolist()
    assert first.prompts.rows_B.tolist() != other.prompts.rows_B.tolist()


def test_processes_share_the_prompts_of_a_step(toy) -> None:
    policy = Policy(toy.model, toy.trie, settings_of())
    alone = make_maker(toy, settings_of()).make(policy, toy.model, 0)[0].prompts.rows_B
    halves = [make_maker(toy, settings_of(), rank, 2).make(policy, toy.model, 0)[0].prompts.rows_B for rank in (0, 1)]
    assert sorted(np.concatenate(halves)) == sorted(alone)
    with pytest.raises(ConfigError, match="a multiple of the 3 processes"):
        make_maker(toy, settings_of(), 0, 3)


def test_old_scores_are_taken_only_where_the_policy_will_move(toy) -> None:
    on_policy = settings_of()
    experience, _ = make_maker(toy, on_policy).make(Policy(toy.model, toy.trie, on_policy), toy.model, 0)
    assert experience.old_log_probs_BG.isnan().all()
    assert experience.reference_log_probs_BG is None
    off_policy = settings_of(rollout={"group_size": 6, "updates": 2}, objective={"kl_weight": 0.1})
    policy = Policy(toy.model, toy.trie, off_policy)
    experience, _ = make_maker(toy, off_policy).make(policy, toy.model, 0)
    found = policy(experience, None).scores.log_probs_BG
    torch.testing.assert_close(experience.old_log_probs_BG, found)
    torch.testing.assert_close(experience.reference_log_probs_BG, found)


def test_pairs_are_the_best_and_the_worst_of_each_group(toy) -> None:
    settings = settings_of(objective={"kind": "dpo"})
    experience, judged = make_maker(toy, settings).make(Policy(toy.model, toy.trie, settings), toy.model, 0)
    items_BG = judged.rollout.items_BG
    assert experience.rollout.items_BG[:, 0].tolist() == items_BG.max(dim=1).values.tolist()
    assert experience.rollout.items_BG[:, 1].tolist() == items_BG.min(dim=1).values.tolist()
    assert experience.reference_log_probs_BG is not None


def test_a_dislike_that_everybody_or_nobody_has_is_refused(toy) -> None:
    settings = settings_of(feedback={"watch_column": "watch_seconds", "dislike_column": "hate"})
    training = toy.histories
    for hate in (0.0, 1.0):
        columns = {
            "watch_seconds": training.feedback["watch_seconds"],
            "duration_seconds": training.feedback["watch_seconds"] + 1,
            "hate": np.full(training.num_events, hate, dtype=np.float32),
        }
        hated = dataclasses.replace(toy, histories=dataclasses.replace(training, feedback=columns))
        with pytest.raises(DataError, match=f"'hate': found the value {hate:g} everywhere"):
            make_maker(hated, settings)


# ---- one forward pass --------------------------------------------------------------------------------------------


def test_generated_items_are_scored_without_dropout_and_targets_with_it(toy) -> None:
    torch.manual_seed(0)
    config = OneRecConfig(toy.trie.codes_per_level, 14, d_model=16, d_ff=32, max_history_items=4, dropout=0.5)
    model = OneRec(config)
    model.set_codes(toy.codes_NL, "hash")
    policy = Policy(model, toy.trie, settings_of()).train()
    experience, _ = make_maker(toy, settings_of()).make(policy, model, 0)
    assert policy.training
    batch = SupervisedWindows(many_target_windows(toy.histories, 4), None, 1, 200, seed=0).at(0, torch.device("cpu"))
    first, second = policy(experience, batch), policy(experience, batch)
    torch.testing.assert_close(first.scores.log_probs_BG, second.scores.log_probs_BG, rtol=0, atol=0)
    assert first.supervised_loss != second.supervised_loss
    assert first.num_targets == 12 * 5
    assert policy.training


# ---- the loss ----------------------------------------------------------------------------------------------------


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def scores(log_probs: Tensor) -> Scores:
    return Scores(log_probs, torch.zeros_like(log_probs))


def experience_of(advantages_BG: Tensor, present_BG: Tensor) -> Experience:
    one = torch.zeros(1, dtype=torch.int64)
    prompts = PromptBatch(np.zeros(1), one[None], one, np.zeros(1, dtype=np.int64), [np.zeros(1)])
    rollout = Rollout(torch.zeros_like(advantages_BG).long(), present_BG, torch.zeros_like(advantages_BG))
    old_BG = torch.full_like(advantages_BG, NAN)
    return Experience(prompts, rollout, advantages_BG, old_BG, None)


def test_the_loss_of_generated_items_is_the_mean_over_the_group() -> None:
    log_probs = row(-1.0, -2.0, -3.0, -4.0).requires_grad_()
    experience = experience_of(row(1.0, -2.0, 0.5, 9.0), torch.tensor([[True, True, True, False]]))
    loss = policy_loss(PolicyOutput(scores(log_probs), None, None, None, 0), experience, settings_of(), None)
    assert loss.item() == pytest.approx(-(1 - 2 + 0.5) / 4)  # every ratio is 1
    loss.backward()
    torch.testing.assert_close(log_probs.grad, row(-0.25, 0.5, -0.125, 0.0))


@pytest.mark.parametrize(
    ("objective", "gain"),
    [
        ({"kind": "grpo"}, 1.2),
        ({"kind": "grpo", "epsilon_high": 0.4}, 1.4),
        ({"kind": "cispo", "epsilon_high": 0.4}, 1.4 * np.log(0.2)),
        ({"kind": "sapo"}, 4 / (1 + np.exp(-1))),
        ({"kind": "vespo"}, np.exp(-3) * 4 * np.log(0.2)),
        ({"kind": "ecpo"}, 1.2),
        ({"kind": "gbpo"}, 1.0),
    ],
)
def test_the_surrogate_is_of_the_kind_that_is_asked_for(objective: dict[str, object], gain: float) -> None:
    """A good sample whose probability has doubled, from .1 to .2."""
    settings = settings_of(objective=objective).objective
    found = surrogate(row(np.log(0.2)), row(np.log(0.1)), row(1.0), settings)
    assert found.item() == pytest.approx(gain, rel=1e-5)


def test_each_further_term_has_its_weight() -> None:
    settings = settings_of(
        objective={"weight": 0.0, "kl_weight": 0.5},
        format={"weight": 3.0, "group_size": 4, "chosen": 2},
        feedback={"weight": 7.0},
    )
    log_probs, free, logged = row(-1.0, -2.0), row(-1.0, -1.0, -1.0, -1.0), torch.tensor([[-1.0], [-1.0]])
    free.requires_grad_()
    logged.requires_grad_()
    experience = dataclasses.replace(
        experience_of(row(1.0, -1.0), torch.tensor([[True, True]])),
        reference_log_probs_BG=row(-1.0, -2.0 + np.log(2)),
        free_advantages_BF=row(1.0, 0.0, 1.0, 0.0),
        logged_advantages_B=torch.tensor([1.0, -1.0]),
    )
    loss = policy_loss(
        PolicyOutput(scores(log_probs), scores(free), scores(logged), None, 0), experience, settings, None
    )
    # KL: (0 + (2 - log 2 - 1)) / 2.  Format: both chosen ones are legal.  Logged: +1 and -1 cancel.
    assert loss.item() == pytest.approx(0.5 * (1 - np.log(2)) / 2 - 3.0 * 2 / 2)
    loss.backward()
    torch.testing.assert_close(free.grad, row(-1.5, 0.0, -1.5, 0.0))
    torch.testing.assert_close(logged.grad, torch.tensor([[-3.5], [3.5]]))


# ---- legality ----------------------------------------------------------------------------------------------------


def test_legal_masses_are_what_the_legal_codes_hold_at_each_step(toy) -> None:
    settings = settings_of(legality_weight=2.0, objective={"weight": 0.0}, supervised={"weight": 0})
    policy = Policy(toy.model, toy.trie, settings).eval()
    experience, _ = make_maker(toy, settings).make(policy, toy.model, 0)
    output = policy(experience, None)
    masses_BG = output.legal_masses_BG
    context = experience.prompts.encode(toy.model)
    items_BG = experience.rollout.items_BG
    logits = toy.model.score_levels(context, toy.model.codes_of(items_BG))
    for request, item in ((0, 0), (3, 1), (7, 5)):
        codes = toy.codes_NL[items_BG[request, item]]
        wanted = 0.0
        for level, logits_BWK in enumerate(logits):
            probs_K = logits_BWK.expand(-1, items_BG.size(1), -1)[request, item].softmax(dim=0)
            legal = np.unique(toy.codes_NL[(toy.codes_NL[:, :level] == codes[:level]).all(axis=1), level])
            wanted += probs_K[torch.from_numpy(legal).long()].sum().log().item()
        assert masses_BG[request, item].item() == pytest.approx(wanted, abs=1e-4)
    present_BG = experience.rollout.present_BG
    loss = policy_loss(output, experience, settings, None)
    assert loss.item() == pytest.approx(-2.0 * (masses_BG * present_BG).mean().item(), rel=1e-5)


def test_legal_masses_cost_one_pass_of_the_decoder(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(legality_weight=1.0)
    policy = Policy(toy.model, toy.trie, settings)
    experience, _ = make_maker(toy, settings).make(policy, toy.model, 0)
    passes, score_levels = [], toy.model.score_levels
    monkeypatch.setattr(toy.model, "score_levels", lambda *asked: passes.append(asked) or score_levels(*asked))
    policy(experience, None)
    assert len(passes) == 2  # the objective's scores are the other


def test_without_the_weight_no_legal_mass_is_taken(toy) -> None:
    policy = Policy(toy.model, toy.trie, settings_of())
    experience, _ = make_maker(toy, settings_of()).make(policy, toy.model, 0)
    assert policy(experience, None).legal_masses_BG is None
