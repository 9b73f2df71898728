import html.parser
import re
from dataclasses import dataclass

import numpy as np
import pytest

from onerec.baselines.popularity import Popularity
from onerec.data.histories import Histories, Split
from onerec.evaluation.evaluator import evaluate
from onerec.evaluation.examples import choose_examples
from onerec.evaluation.report import ReportContents, render_report, write_report
from onerec.evaluation.results import Run, summarize_runs
from onerec.evaluation.settings import EvaluationSettings

TITLES = [f"Title <{item}>" for item in range(12)]
SETTINGS = EvaluationSettings(ks=(1, 5, 10), bootstrap_samples=20)
LOG = [
    {"step": 50, "loss": 5.0, "loss_level_0": 4.0, "targets_per_s": 100.0},
    {"step": 100, "loss": 4.0, "loss_level_0": 3.0, "targets_per_s": 110.0},
    {"step": 100, "eval_recall@10": 0.05, "eval_ndcg@10": 0.02},
    {"step": 200, "eval_recall@10": 0.06, "eval_ndcg@10": 0.03},
    {"step": 200, "train_runtime": 60.0},
]
LEVEL = {"num_codes": 4, "used": 3, "dead": 1, "perplexity": 2.5, "largest": 7, "counts": [7, 2, 1, 0]}
TOKENIZER_REPORT = {
    "num_items": 12,
    "quantizer": "residual k-means",
    "policy": "suffix",
    "levels": [LEVEL, LEVEL],
    "before": {"num_distinct": 11, "num_colliding": 2, "largest_bucket": 2},
    "after": {"num_distinct": 12, "num_colliding": 0, "largest_bucket": 1},
    "relative_error": 0.25,
    "neighbours": {"by_prefix": [0.5, 0.1], "by_chance": [0.1, 0.01]},
}


@dataclass
class Data:
    histories: Histories
    num_items: int


@pytest.fixture(scope="module")
def data() -> Data:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 15, size=30)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    splits = np.zeros(offsets[-1], dtype=np.uint8)
    splits[offsets[1:] - 1] = Split.TEST
    splits[offsets[1:] - 2] = Split.VALIDATION
    items = rng.integers(12, size=offsets[-1]).astype(np.int32)
    histories = Histories(offsets, items, np.arange(offsets[-1]), splits)
    return Data(histories, 12)


@pytest.fixture(scope="module")
def run(data) -> Run:
    popularity = Popularity.fit(data.histories, data.num_items)
    evaluations = evaluate(popularity, data, Split.TEST, SETTINGS, show_progress=False)
    return Run(0, evaluations, minutes=0.1, parameters=popularity.num_parameters)


@pytest.fixture(scope="module")
def results(run):
    return summarize_runs({"onerec": [run], "popularity": [run]}, "amazon14_beauty", SETTINGS)


class Checker(html.parser.HTMLParser):
    """Collects the text and refuses tags that are not closed in turn."""

    void = frozenset({"meta", "br", "img", "hr", "link", "input"})

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)


def parse(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


def test_examples_are_hits_and_misses_of_the_evaluation(data, run):
    titles = [str(item) for item in range(12)]
    popularity = Popularity.fit(data.histories, data.num_items)
    evaluation = run.evaluations["test_unseen"]
    examples = choose_examples(popularity, data, evaluation, titles, num_hits=2, num_misses=2, k=3, max_shown_items=4)
    hits = [any(item.is_target for item in example.recommended) for example in examples]
    assert hits == [True, True, False, False]
    for example in examples:
        user = int(example.user)
        events = data.histories.items[data.histories.offsets[user] : data.histories.offsets[user + 1]]
        assert example.history == [str(item) for item in events[:-1]][-4:]
        assert example.num_earlier == max(0, len(events) - 1 - 4)
        assert example.target == str(events[-1])
        assert not {item.title for item in example.recommended} & {str(item) for item in events[:-1]}


def test_the_whole_page(data, run, results):
    popularity = Popularity.fit(data.histories, data.num_items)
    examples = choose_examples(popularity, data, run.evaluations["test"], TITLES)
    page = render_report(
        ReportContents("A & B", results, LOG, TOKENIZER_REPORT, examples, "seed: 1\nname: <x>", {"torch": "2.13"})
    )
    checker = parse(page)
    text = " ".join(" ".join(checker.texts).split())
    for expected in (
        "A & B",
        f"{results.test['onerec'].metrics['recall@10'].mean:.4f}",
        "Training loss (nats)",
        "Validation NDCG",
        "residual k-means",
        "2.5",
        "cold",
        "gini@10",
        "Title <1>",
        "name: <x>",
        "2.13",
        "eSASRec",
    ):
        assert expected in text
    # One page, nothing fetched and nothing run.
    assert not {tag for tag, _ in checker.tags} & {"script", "link", "img", "iframe"}
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#)", page)
    assert "url(" not in page


def test_every_link_has_its_section(results):
    checker = parse(render_report(ReportContents("t", results, LOG, TOKENIZER_REPORT)))
    links = {attributes["href"].removeprefix("#") for tag, attributes in checker.tags if tag == "a"}
    assert links == {attributes["id"] for tag, attributes in checker.tags if tag == "section"}
    assert "training" in links
    assert "users" not in links


def test_parts_that_are_empty_are_left_out(results):
    page = render_report(ReportContents("t", results))
    assert "Training loss" not in page
    assert "Code use" not in page
    parse(page)


def test_the_page_is_written(results, tmp_path):
    write_report(tmp_path / "report" / "report.html", ReportContents("t", results))
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert page == render_report(ReportContents("t", results))
