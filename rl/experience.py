"""From a step's number to its experience: which prompts, what the policy makes of them, and what that is worth.

Everything random follows from (seed, rollout, process), so that a resumed training meets the same experience. Prompts
do not depend on the number of processes; the noise in their samples does.

Shapes: B prompts of this process, G generated items of a prompt, F samples without the trie.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onerec.decoding.sampling import sample_items
from onerec.decoding.trie import Trie
from onerec.errors import ConfigError
from onerec.model.onerec import OneRec
from rl.dpo import best_and_worst
from rl.objectives import group_advantages
from rl.policy import Experience, Policy
from rl.rewards.feedback import duration_aware_advantages, log_percentiles
from rl.rewards.format import format_advantages
from rl.rollout import PromptBatch, Prompts, Rollout, roll_out
from rl.settings import AlignSettings, LoggedFeedbackSettings

ItemReward = Callable[[PromptBatch, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Judged:
    """A rollout with its rewards, for the monitor."""

    rollout: Rollout
    rewards_BG: Tensor
    targets_B: Tensor
    spread_B: Tensor


class LoggedFeedback:
    """Duration-aware advantages of the training events."""

    def __init__(self, prompts: Prompts, settings: LoggedFeedbackSettings) -> None:
        training = prompts.training
        self._percentiles_N = log_percentiles(training.offsets, training.feedback, settings)
        self._dislikes_N = np.zeros(training.num_events, dtype=bool)
        if settings.dislike_column is not None:
            if settings.dislike_column not in training.feedback:
                known = ", ".join(training.feedback)
                raise ConfigError(
                    f"align.feedback.dislike_column: found {settings.dislike_column!r}, expected one of {known}."
                )
            self._dislikes_N = np.nan_to_num(training.feedback[settings.dislike_column]) > 0
        self._top_share = settings.top_share

    def advantages(self, rows: np.ndarray) -> np.ndarray:
        """Advantages of the events in these rows, taken as one batch."""
        return duration_aware_advantages(self._percentiles_N[rows], self._dislikes_N[rows], self._top_share)


class ExperienceMaker:
    """Draws prompts and lets the policy generate for them.

    Raises:
        ConfigError: fewer prompts than a step takes, a step that the processes cannot share evenly, or a feedback
            column that does not exist.
    """

    def __init__(
        self,
        prompts: Prompts,
        trie: Trie,
        reward: ItemReward,
        settings: AlignSettings,
        seed: int,
        rank: int,
        num_processes: int,
    ) -> None:
        self._prompts, self._trie, self._reward, self._settings = prompts, trie, reward, settings
        self._seed, self._rank, self._num_processes = seed, rank, num_processes
        self._feedback = LoggedFeedback(prompts, settings.feedback) if settings.feedback else None
        wanted = settings.prompts_per_step
        if wanted > len(prompts.rows) or wanted % num_processes:
            raise ConfigError(
                f"align.prompts_per_step: found {wanted}, expected at most the {len(prompts.rows)} training events "
                f"with a history, and a multiple of the {num_processes} processes."
            )

    def make(self, policy: Policy, reference: OneRec, number: int) -> tuple[Experience, Judged]:
        """The experience of rollout `number`; the policy is left in the mode it was in."""
        was_training = policy.training
        policy.eval()
        rows = np.random.default_rng([self._seed, number]).choice(
            self._prompts.rows, self._settings.prompts_per_step, replace=False
        )
        own = slice(self._rank, None, self._num_processes)
        prompts = self._prompts.batch(rows[own], policy.model.device)
        generator = torch.Generator(policy.model.device)
        generator.manual_seed(int(np.random.SeedSequence([self._seed, number, self._rank]).generate_state(1)[0]))
        rollout = roll_out(policy.model, prompts, self._trie, self._settings.rollout, generator)
        judged, advantages_BG = self._judge(prompts, rollout)
        if self._settings.objective.kind == "dpo":
            rollout = _pairs(judged)
        free_codes_BFL, free_advantages_BF = self._sample_freely(policy.model, prompts, generator, number)
        logged_B = None
        if self._feedback is not None:
            logged_B = torch.from_numpy(self._feedback.advantages(rows)[own]).to(policy.model.device)
        old_BG, reference_BG = self._other_scores(policy, reference, prompts, rollout)
        policy.train(was_training)
        experience = Experience(
            prompts, rollout, advantages_BG, old_BG, reference_BG, free_codes_BFL, free_advantages_BF, logged_B
        )
        return experience, judged

    def _judge(self, prompts: PromptBatch, rollout: Rollout) -> tuple[Judged, Tensor]:
        items_BG = rollout.items_BG.masked_fill(~rollout.present_BG, -1).cpu().numpy()
        rewards = self._reward(prompts, items_BG, rollout.scores_BG.cpu().numpy())
        rewards_BG = torch.from_numpy(rewards).to(rollout.items_BG.device)
        advantages_BG, spread_B = group_advantages(rewards_BG, rollout.present_BG)
        targets_B = torch.from_numpy(prompts.targets_B).to(rollout.items_BG.device)
        return Judged(rollout, rewards_BG, targets_B, spread_B), advantages_BG

    @torch.no_grad()
    def _sample_freely(
        self, model: OneRec, prompts: PromptBatch, generator: torch.Generator, number: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Codes drawn without the trie and the format reward's advantages, where the config asks for them."""
        settings = self._settings.format
        if settings is None:
            return None, None
        context = model.encode(prompts.histories_BS, prompts.lengths_B)
        samples = sample_items(model, context, self._trie, settings.group_size, generator, constrained=False)
        chooser = np.random.default_rng([self._seed, number, self._rank])
        advantages_BF = format_advantages((samples.items_BG >= 0).cpu().numpy(), settings.chosen, chooser)
        return samples.codes_BGL, torch.from_numpy(advantages_BF).to(model.device)

    @torch.no_grad()
    def _other_scores(
        self, policy: Policy, reference: OneRec, prompts: PromptBatch, rollout: Rollout
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities under the policy as it is now, where it will have moved, and under the reference."""
        excluded = prompts.seen if self._settings.rollout.exclude_seen else None
        old_BG = torch.full_like(rollout.scores_BG, float("nan"))
        if self._settings.rollout.updates > 1:
            context = policy.model.encode(prompts.histories_BS, prompts.lengths_B)
            old_BG = policy.score(context, rollout.items_BG, excluded).log_probs_BG
        if not self._settings.objective.kl_weight and self._settings.objective.kind != "dpo":
            return old_BG, None
        judge = Policy(reference, self._trie, self._settings)
        context = reference.encode(prompts.histories_BS, prompts.lengths_B)
        return old_BG, judge.score(context, rollout.items_BG, excluded).log_probs_BG


def _pairs(judged: Judged) -> Rollout:
    """The best and the worst item of every group that has any spread."""
    rollout = judged.rollout
    places_B2 = best_and_worst(judged.rewards_BG, rollout.present_BG)
    present_B2 = judged.spread_B[:, None].expand_as(places_B2)
    return Rollout(rollout.items_BG.gather(1, places_B2), present_B2, rollout.scores_BG.gather(1, places_B2))
