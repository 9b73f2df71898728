"""What the codes are like: use of each level, collisions, error, agreement of neighbours.

Legend: N items, L levels, K codes a level, D width, Q sampled items, k neighbours.
"""

import io
import math
from pathlib import Path

import faiss
import numpy as np
from jinja2 import Environment, FileSystemLoader
from pydantic import BaseModel

from tokenizer.artifacts import write_json
from tokenizer.behaviour.front import FrontReport
from tokenizer.collisions import CollisionCounts, Resolution
from tokenizer.config import ReportSettings, TokenizerSettings
from tokenizer.quantizers.residual import ResidualQuantizer, iterate_chunks


class LevelUse(BaseModel):
    """Use of one level's codes; `possible` is min(num_codes, num_items)."""

    num_codes: int
    possible: int
    used: int
    dead: int
    use_share: float  # used / possible
    entropy_nats: float
    perplexity: float  # exp(entropy): as if so many codes were used evenly
    perplexity_share: float  # perplexity / possible
    largest: int  # items under the most used code
    counts: list[int]  # items a code


class Collisions(BaseModel):
    """How many items share their codes."""

    num_distinct: int
    num_colliding: int
    collision_share: float
    largest_bucket: int
    buckets_by_size: dict[int, int]  # items in a bucket -> number of buckets


class NeighbourAgreement(BaseModel):
    """Share of an item's nearest neighbours (by vector) that share its first codes, level by level, and by chance."""

    num_neighbours: int
    num_sampled: int
    by_prefix: list[float]
    by_chance: list[float]


class Report(BaseModel):
    """`report.json`."""

    num_items: int
    quantizer: str
    policy: str
    levels: list[LevelUse]
    before: Collisions
    after: Collisions
    num_moved: int
    reconstruction_error: float  # mean squared length of vector - reconstruction
    relative_error: float  # the same / mean squared distance to the mean vector
    neighbours: NeighbourAgreement
    items_unknown: dict[str, int]  # source of vectors -> items it knows nothing of
    behaviour: FrontReport | None = None  # how the behaviour-aware vectors were trained

    def after_resolution(self, resolution: Resolution) -> "Report":
        """The same report with collisions counted after they were handled."""
        after = count_collisions(resolution.codes_NL, resolution.codes_per_level)
        return self.model_copy(update={"after": after, "num_moved": resolution.num_moved})


def describe(
    codes_NL: np.ndarray,
    quantizer: ResidualQuantizer,
    vectors_ND: np.ndarray,
    settings: TokenizerSettings,
    items_unknown: dict[str, int],
) -> Report:
    """Measure the codes as fitted, before collisions are handled."""
    sizes = quantizer.codes_per_level
    collisions = count_collisions(codes_NL, sizes)
    error, relative = _reconstruction_errors(codes_NL, quantizer, vectors_ND)
    return Report(
        num_items=len(codes_NL),
        quantizer=quantizer.kind,
        policy=settings.collisions.policy,
        levels=[level_use(codes_NL[:, level], size) for level, size in enumerate(sizes)],
        before=collisions,
        after=collisions,
        num_moved=0,
        reconstruction_error=error,
        relative_error=relative,
        neighbours=neighbour_agreement(codes_NL, vectors_ND, settings.report, settings.seed),
        items_unknown=items_unknown,
    )


def failures(report: Report, thresholds: ReportSettings) -> list[str]:
    """Thresholds that the codes as fitted break, one sentence each."""
    broken = []
    if report.num_items > 1 and report.before.num_distinct == 1:
        broken.append(f"all {report.num_items} items have the same codes")
    for number, level in enumerate(report.levels, start=1):
        if level.use_share < thresholds.min_level_use:
            broken.append(
                f"level {number} uses {level.used} of {level.possible} possible codes, "
                f"expected a share of {thresholds.min_level_use:g} (min_level_use)"
            )
        if level.perplexity_share < thresholds.min_perplexity_share:
            broken.append(
                f"level {number} has perplexity {level.perplexity:.1f} of {level.possible} possible, "
                f"expected a share of {thresholds.min_perplexity_share:g} (min_perplexity_share)"
            )
    largest = report.before.largest_bucket
    if largest > 1 and largest > thresholds.max_bucket_share * report.num_items:
        broken.append(
            f"{largest} of {report.num_items} items share one semantic ID, "
            f"expected at most a share of {thresholds.max_bucket_share:g} (max_bucket_share)"
        )
    if report.before.collision_share > thresholds.max_collision_share:
        broken.append(
            f"{report.before.num_colliding} of {report.num_items} items collide, "
            f"expected at most a share of {thresholds.max_collision_share:g} (max_collision_share)"
        )
    if report.neighbours.by_prefix[0] < thresholds.min_neighbour_agreement:
        broken.append(
            f"{report.neighbours.by_prefix[0]:.3f} of nearest neighbours share the first code, "
            f"expected {thresholds.min_neighbour_agreement:g} (min_neighbour_agreement)"
        )
    return broken


def level_use(codes_N: np.ndarray, num_codes: int) -> LevelUse:
    """Use, perplexity and dead codes of one level."""
    counts_K = np.bincount(codes_N, minlength=num_codes)
    shares = counts_K[counts_K > 0] / len(codes_N)
    entropy = float(-(shares * np.log(shares)).sum())
    possible = min(num_codes, len(codes_N))
    return LevelUse(
        num_codes=num_codes,
        possible=possible,
        used=len(shares),
        dead=num_codes - len(shares),
        use_share=len(shares) / possible,
        entropy_nats=entropy,
        perplexity=math.exp(entropy),
        perplexity_share=math.exp(entropy) / possible,
        largest=int(counts_K.max()),
        counts=counts_K.tolist(),
    )


def count_collisions(codes_NL: np.ndarray, codes_per_level: tuple[int, ...]) -> Collisions:
    """Buckets of items with equal codes."""
    counts = CollisionCounts.of(codes_NL, codes_per_level)
    sizes, numbers = np.unique(counts.bucket_sizes, return_counts=True)
    return Collisions(
        num_distinct=counts.num_distinct,
        num_colliding=counts.num_colliding,
        collision_share=counts.num_colliding / counts.num_items,
        largest_bucket=counts.largest_bucket,
        buckets_by_size={int(size): int(number) for size, number in zip(sizes, numbers, strict=True)},
    )


def neighbour_agreement(
    codes_NL: np.ndarray, vectors_ND: np.ndarray, settings: ReportSettings, seed: int
) -> NeighbourAgreement:
    """Compare the nearest neighbours of a seeded sample of items with shared prefixes."""
    num_items, num_levels = codes_NL.shape
    num_neighbours = min(settings.num_neighbours, num_items - 1)
    sample_Q = np.random.default_rng(seed).permutation(num_items)[: settings.neighbour_sample_items]
    if num_neighbours < 1:
        return NeighbourAgreement(
            num_neighbours=0, num_sampled=0, by_prefix=[1.0] * num_levels, by_chance=[1.0] * num_levels
        )
    everything_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
    _, found_Qk = faiss.knn(everything_ND[sample_Q], everything_ND, num_neighbours + 1)
    is_other_Qk = found_Qk != sample_Q[:, None]
    same_QkL = codes_NL[found_Qk] == codes_NL[sample_Q][:, None, :]
    prefix_QkL = np.logical_and.accumulate(same_QkL, axis=2)
    strangers_Q = np.roll(sample_Q, 1)  # the sample is in random order
    chance_QL = np.logical_and.accumulate(codes_NL[sample_Q] == codes_NL[strangers_Q], axis=1)
    return NeighbourAgreement(
        num_neighbours=num_neighbours,
        num_sampled=len(sample_Q),
        by_prefix=prefix_QkL[is_other_Qk].mean(axis=0).tolist(),
        by_chance=chance_QL.mean(axis=0).tolist(),
    )


def write_report(report: Report, folder: Path) -> None:
    """Write report.json and the self-contained report.html."""
    write_json(folder / "report.json", report.model_dump(mode="json"))
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("report.html").render(report=report, plots=_plots(report))
    (folder / "report.html").write_text(page, encoding="utf-8")


def summarise(report: Report) -> str:
    """The report in a few lines for a terminal."""
    lines = [f"{report.num_items} items, {report.quantizer}, policy {report.policy}"]
    for number, level in enumerate(report.levels, start=1):
        lines.append(
            f"level {number}: {level.used} of {level.num_codes} codes used, perplexity {level.perplexity:.1f}, "
            f"entropy {level.entropy_nats:.3f} nats, most used code has {level.largest} items"
        )
    for name, counts in (("before", report.before), ("after", report.after)):
        lines.append(
            f"collisions {name}: {counts.num_distinct} distinct IDs, {counts.num_colliding} items share one "
            f"({counts.collision_share:.2%}), largest bucket {counts.largest_bucket}"
        )
    agreement = ", ".join(f"{share:.3f}" for share in report.neighbours.by_prefix)
    lines.append(f"moved items: {report.num_moved}; relative reconstruction error {report.relative_error:.4f}")
    lines.append(f"nearest neighbours sharing the first 1..L codes: {agreement}")
    if (front := report.behaviour) is not None:
        lines.append(
            f"behaviour vectors: {front.user_pairs} user and {front.swing_pairs} Swing pairs, {front.swing_left_out} "
            f"meetings of {front.swing_capped_items} items beyond Swing's cap, {front.texts_at_limit} of "
            f"{front.items_read} texts at the token limit; losses at the end: contrastive "
            f"{front.losses[-1].contrastive:.3f}, caption {front.losses[-1].caption:.3f}"
        )
    return "\n".join(lines)


def _reconstruction_errors(
    codes_NL: np.ndarray, quantizer: ResidualQuantizer, vectors_ND: np.ndarray
) -> tuple[float, float]:
    mean_D = np.asarray(vectors_ND).mean(axis=0, dtype=np.float64).astype(np.float32)
    error = spread = 0.0
    for rows in iterate_chunks(len(codes_NL), quantizer.chunk_rows, "reconstruction"):
        error += float(np.square(vectors_ND[rows] - quantizer.reconstruct(codes_NL[rows])).sum(dtype=np.float64))
        spread += float(np.square(vectors_ND[rows] - mean_D).sum(dtype=np.float64))
    return error / len(codes_NL), error / spread if spread > 0 else 0.0


def _plots(report: Report) -> list[tuple[str, str]]:
    """Title and inline SVG of every plot."""
    from matplotlib.figure import Figure

    use, buckets, neighbours = Figure((6, 3.2)), Figure((6, 3.2)), Figure((6, 3.2))
    axes = use.subplots()
    for number, level in enumerate(report.levels, start=1):
        axes.plot(sorted(level.counts, reverse=True), label=f"level {number}")
    axes.set(xlabel="codes, most used first", ylabel="items")
    axes.legend()
    axes = buckets.subplots()
    axes.bar(list(report.before.buckets_by_size), list(report.before.buckets_by_size.values()))
    axes.set(xlabel="items sharing one semantic ID", ylabel="semantic IDs", yscale="log")
    axes = neighbours.subplots()
    levels = np.arange(1, len(report.levels) + 1)
    axes.bar(levels - 0.2, report.neighbours.by_prefix, 0.4, label="nearest neighbours")
    axes.bar(levels + 0.2, report.neighbours.by_chance, 0.4, label="random pairs")
    axes.set(xlabel="first codes compared", ylabel="share that agrees", xticks=levels)
    axes.legend()
    figures = {"Use of codes": use, "Buckets before collisions are handled": buckets, "Neighbours": neighbours}
    return [(title, _svg(figure)) for title, figure in figures.items()]


def _svg(figure: object) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    figure.set_layout_engine("tight")
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "onerec"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
