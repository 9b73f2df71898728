"""Settings of an evaluation."""

from typing import Literal

from pydantic import Field, field_validator

from tokenizer.settings import Settings

Protocol = Literal["seen_allowed", "seen_excluded"]


class EvaluationSettings(Settings):
    """What is measured, on how many targets, and how sure the figures are."""

    ks: tuple[int, ...] = Field((1, 5, 10, 20, 50), description="List lengths of Recall, NDCG and MRR, in items.")
    protocols: tuple[Protocol, ...] = Field(
        ("seen_allowed", "seen_excluded"),
        description="Whether items of the user's history may be recommended: `seen_allowed` as the generative papers "
        "rank, `seen_excluded` as the RecTools line ranks and a feed does.",
    )
    batch_size: int = Field(256, ge=1, description="Histories ranked at a time.")
    max_rows: int | None = Field(
        None, ge=1, description="Evaluate a seeded sample of this many targets; the result names it. None: all."
    )
    sample_seed: int = Field(0, ge=0, description="Seed of the sample of targets.")
    exposure_k: int = Field(10, ge=1, description="List length of coverage, Gini and popularity, in items.")
    hot_min_count: int = Field(20, ge=2, description="Training events from which a target counts as hot.")
    head_share: float = Field(0.2, gt=0, lt=1, description="Share of the catalogue, most popular first, that is head.")
    bootstrap_samples: int = Field(1000, ge=1, description="Resamplings of the users behind an interval.")
    bootstrap_seed: int = Field(0, ge=0, description="Seed of the resamplings.")
    confidence: float = Field(0.95, gt=0, lt=1, description="Confidence level of the intervals.")

    @field_validator("ks")
    @classmethod
    def _check_ks(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if not ks or list(ks) != sorted(set(ks)) or ks[0] < 1:
            raise ValueError("expected list lengths from 1, each once, in ascending order")
        return ks

    @field_validator("protocols")
    @classmethod
    def _check_protocols(cls, protocols: tuple[Protocol, ...]) -> tuple[Protocol, ...]:
        if not protocols or len(set(protocols)) != len(protocols):
            raise ValueError("expected at least one protocol, each once")
        return protocols

    @property
    def list_length(self) -> int:
        """Items asked of a recommender for each target."""
        return max(*self.ks, self.exposure_k)
