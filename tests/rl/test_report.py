"""The page about an alignment shows every figure that was logged, and says why it ended."""

from pathlib import Path
from types import SimpleNamespace

from rl.report import write_alignment_page

MONITORED = (
    "reward",
    "hit_rate",
    "groups_without_spread",
    "coverage",
    "popularity",
    "legality",
    "kl",
    "entropy",
    "loss",
)


def evaluations(ndcg: float) -> dict[str, SimpleNamespace]:
    return {"test_unseen": SimpleNamespace(metrics={"ndcg@10": ndcg, "mrr@10": 0.9})}


def page_of(folder: Path, log: list[dict[str, float]], stop_reason: str | None = None) -> str:
    details = {"step": 4, "steps_trained": 8, "stop_reason": stop_reason}
    write_alignment_page(folder / "page.html", "mine", log, evaluations(0.25), evaluations(0.2), details)
    return (folder / "page.html").read_text()


def test_every_figure_of_the_monitor_has_a_chart_over_the_steps(tmp_path: Path) -> None:
    lines = [dict.fromkeys(MONITORED, 0.5), {"eval_ndcg@1": 0.1, "eval_ndcg@10": 0.2}]
    log = [{**line, "step": step} for step in (4, 8) for line in lines]
    page = page_of(tmp_path, log)
    assert page.count("<svg") == len(MONITORED) + 1
    assert page.count("<polyline") == len(MONITORED) + 2
    assert page.count("<circle") == 2 * (len(MONITORED) + 2)
    assert "held-out ndcg" in page


def test_chosen_and_rejected_share_a_chart(tmp_path: Path) -> None:
    page = page_of(tmp_path, [{"logps/chosen": -1.0, "logps/rejected": -2.0, "step": 4}])
    assert page.count("<svg") == 1
    assert page.count("<polyline") == 2
    assert '<span><i class="c1"></i>logps/rejected</span>' in page


def test_it_says_why_it_ended_and_what_changed(tmp_path: Path) -> None:
    page = page_of(tmp_path, [], "coverage: found 0.1000, expected at least 0.2000")
    assert "Weights of step 4 of 8 trained; stopped by the monitor: coverage: found 0.1000" in page
    row = ("Test, seen items excluded", "ndcg@10", "0.2500", "0.2000", "-0.0500")
    assert "".join(f"<td>{cell}</td>" for cell in row) in page
    assert "mrr" not in page
