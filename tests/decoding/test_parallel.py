"""Two processes that share a model out, against one that has it whole: the same items, and scores to 1e-5."""

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onerec.data.histories import Histories
from onerec.data.pathway_settings import CategorySpec, PathwaySettings, PathwaySpec
from onerec.decoding.new_items import NewItemSlots
from onerec.decoding.parallel.blocks import check_divisible, order_rows
from onerec.decoding.parallel.processes import Processes
from onerec.decoding.parallel.recommender import ParallelRecommender
from onerec.decoding.parallel.share import cut_codes
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.transitions import Transitions
from onerec.decoding.trie import Trie
from onerec.errors import ConfigError
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from tests.processes import by_torchrun

SIZES, NUM_ITEMS, NUM_BEAMS, K = (7, 6, 8), 150, 12, 9
GENERATOR = np.random.default_rng(0)
CODES_NL = np.stack(np.unravel_index(np.sort(GENERATOR.choice(336, NUM_ITEMS - 10, replace=False)), SIZES), axis=1)
CODES_NL = GENERATOR.permutation(np.concatenate([CODES_NL, CODES_NL[:10]]))  # ten pairs share all codes: equal scores
RANKS_N = np.array([(CODES_NL[:item] == codes_L).all(axis=1).sum() for item, codes_L in enumerate(CODES_NL)])
HISTORIES = [GENERATOR.integers(0, NUM_ITEMS, length) for length in (3, 0, 6, 1, 20, 6)]
EVENTS = np.random.default_rng(1).integers(0, NUM_ITEMS, 300).astype(np.int32)
LOG = Histories(np.arange(0, 301, 10), EVENTS, np.arange(300), np.zeros(300, dtype=np.uint8))
SHAPE = {"d_model": 16, "d_ff": 32, "num_heads": 4, "max_history_items": 6}
PATHWAYS = PathwaySpec(
    settings=PathwaySettings.model_validate(
        {"short_term": {"features": ["kind"]}, "lifelong": {"features": [], "max_representatives": 4, "num_queries": 3}}
    ),
    categories=(CategorySpec(name="kind", num_own=2, num_shared=3),),
    vector_width=2,
).model_dump(mode="json")
READ_WHOLE = {"encoder.pathways.item_keys_NF", "encoder.pathways.vectors_NV"}  # by every process, of any item

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "swiglu": {"activation": "swiglu", "context": "bidirectional"},
    "all terms": {
        "prefix_vectors": True,
        "repeat_bias": True,
        "bos_reads_context": True,
        "item_head_weight": 1.0,
        "id_head_width": 8,
        "num_pieces": 9,
    },
    "experts": {"num_experts": 4, "num_shared_experts": 1, "expert_d_ff": 8, "num_dense_blocks": 1},
    "lazy, shared keys": {"context": "lazy", "num_kv_heads": 1, "prefix_vectors": True},
    "lazy, own values": {"context": "lazy", "num_kv_heads": 2, "separate_values": True, "repeat_bias": True},
    "hstu": {"context_block": "hstu", "item_embedding": False, "prefix_vectors": True},
    "pathways": {"pathways": PATHWAYS},
}
ALL_CASES = [*((case, "whole") for case in CASES), ("all terms", "filtered"), ("all terms", "changed")]


def make_model(options: dict[str, Any]) -> OneRec:
    return OneRec(OneRecConfig(codes_per_level=SIZES, num_items=NUM_ITEMS, **SHAPE, **options)).eval()


def make_recommender(case: str, tree: str = "whole") -> OneRecRecommender:
    """The same in every process."""
    torch.manual_seed(0)
    model = make_model(CASES[case])
    model.set_codes(CODES_NL, "hash")
    if model.encoder.pathways is not None:
        model.encoder.pathways.item_keys_NF.copy_(torch.arange(NUM_ITEMS)[:, None] % 7)
        model.encoder.pathways.vectors_NV.normal_()
    if model.config.num_pieces:
        model.set_pieces(np.arange(2 * NUM_ITEMS) % 9, np.arange(0, 2 * NUM_ITEMS + 1, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    trie = Trie.from_table(CODES_NL, SIZES, RANKS_N)
    if tree == "filtered":
        trie = trie.restrict((CODES_NL[:, 1] == 2) | (CODES_NL[:, 0] == 6))
    if tree == "changed":
        trie = trie.remove(np.arange(0, 90, 2)).remove(np.array([1, 3])).restore(np.array([3]))
    rescoring = 0.7 if model.item_head is not None else 0.0
    new_items = None
    if tree == "changed":  # new ones all in the last process's share
        new_items = NewItemSlots(2, CODES_NL[:, 0] != 6)
    transitions = Transitions.of(0.4, LOG, NUM_ITEMS) if tree == "filtered" else None
    return OneRecRecommender(model, trie, NUM_BEAMS, rescoring=rescoring, new_items=new_items, transitions=transitions)


def answer(recommender: OneRecRecommender) -> list[np.ndarray]:
    """Items and scores, with and without what the histories hold."""
    rankings = [recommender.recommend(HISTORIES, K, exclude_seen) for exclude_seen in (False, True)]
    return [part for ranking in rankings for part in (ranking.items_BK, ranking.scores_BK)]


def sizes(recommender: OneRecRecommender) -> dict[str, int]:
    """What a process holds: numbers in the blocks' matrices, and rows of items and prefixes."""
    model, vectors = recommender.model, recommender._prefix_vectors
    blocks = torch.nn.ModuleList([*model.encoder.blocks, *model.decoder.blocks])
    matrices = [weights for name, weights in blocks.named_parameters() if weights.dim() > 1 and "router" not in name]
    embedding = model.encoder.embedding
    return {
        "blocks": sum(weights.numel() for weights in matrices),
        "own vectors": 0 if embedding.items is None else len(embedding.items.weight),
        "ids": sum(len(head.network.items.weight) for head in model.id_heads),
        "pieces": 0 if embedding.pieces is None else len(embedding.piece_rows_NL),
        "codes": len(model.encoder.code_rows_NL),
        "leaves": getattr(recommender, "subtree", recommender.trie).num_leaves,
        **{f"prefixes {level}": len(nodes) for level, nodes in enumerate(() if vectors is None else vectors.levels)},
    }


def tables_of_items(model: OneRec) -> list[str]:
    """Names of the parameters and buffers that have a row for each item of the catalogue."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return [name for name, tensor in tensors.items() if tensor.shape[:1] == (NUM_ITEMS,)]


def decode_together(folder: Path) -> None:
    """One of the processes: the leader writes what was answered, each what it holds."""
    processes = Processes.join()
    held, whole, answers = {}, {}, {}
    for case, tree in ALL_CASES:
        shared = ParallelRecommender(make_recommender(case, tree), processes)
        held[f"{case}, {tree}"], whole[case] = sizes(shared), tables_of_items(shared.model)
        if processes.is_leader:
            parts = answer(shared)
            answers |= {f"{case}, {tree}, {number}": part for number, part in enumerate(parts)}
            processes.tell(None)
        else:
            shared.follow()
    (folder / f"{processes.rank}.json").write_text(json.dumps({"held": held, "whole": whole}))
    if processes.is_leader:
        np.savez(folder / "answers.npz", **answers)
    processes.leave()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("deepspeed", reason="no deepspeed package in this environment")
    folder = tmp_path_factory.mktemp("together")
    by_torchrun(2, decode_together, folder)
    return folder


@pytest.mark.parametrize(("case", "tree"), ALL_CASES)
def test_two_processes_answer_as_one(together: Path, case: str, tree: str) -> None:
    answers = np.load(together / "answers.npz")
    for number, expected in enumerate(answer(make_recommender(case, tree))):
        found = answers[f"{case}, {tree}, {number}"]
        np.testing.assert_allclose(found, expected, rtol=1e-5 if expected.dtype == np.float32 else 0)


def test_new_items_have_their_places_though_one_process_holds_them_all(together: Path) -> None:
    items_BK = np.load(together / "answers.npz")["all terms, changed, 0"]
    assert ((CODES_NL[items_BK, 0] == 6).sum(axis=1) >= 2).all()


@pytest.mark.parametrize("case", CASES)
def test_each_process_holds_its_share_alone(together: Path, case: str) -> None:
    whole = sizes(make_recommender(case))
    shares = [json.loads((together / f"{rank}.json").read_text())["held"][f"{case}, whole"] for rank in range(2)]
    for name, size in whole.items():
        held = [share[name] for share in shares]
        if name == "prefixes 0":
            assert held == [size, size]
        elif name == "blocks" and case == "hstu":  # of two context blocks, whole, and two of the decoder, cut
            assert held[0] == held[1] > size / 2
        elif name == "blocks":
            assert held == [size // 2, size // 2]
        else:
            assert sum(held) == size
            assert max(held) < 0.6 * max(size, 1)


@pytest.mark.parametrize("case", CASES)
def test_no_table_of_items_stays_whole(together: Path, case: str) -> None:
    for rank in range(2):
        assert set(json.loads((together / f"{rank}.json").read_text())["whole"][case]) <= READ_WHOLE


def test_every_table_of_items_is_in_some_case() -> None:
    off = [field for field in fields(OneRecConfig) if field.name in OneRecConfig.__annotations__ and field.default == 0]
    everything = make_model({field.name: type(field.default)(1) for field in off} | {"pathways": PATHWAYS})
    seen = {name for options in CASES.values() for name in tables_of_items(make_model(options))}
    assert seen > READ_WHOLE
    assert set(tables_of_items(everything)) <= seen  # an option that brings a new table takes a case above


def test_rows_of_each_part_become_neighbours() -> None:
    rows = torch.arange(12).view(12, 1)  # three parts of four rows: 0-3, 4-7, 8-11
    assert order_rows(rows, 3, 2)[:, 0].tolist() == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]


@pytest.mark.parametrize(
    ("counts", "number", "bounds"),
    [([5, 1, 1, 1, 4], 2, [0, 2, 5]), ([5, 1, 1, 1, 4], 3, [0, 1, 4, 5]), ([0, 3, 0, 3, 0], 2, [0, 2, 5])],
)
def test_first_codes_are_cut_where_items_are_even(counts: list[int], number: int, bounds: list[int]) -> None:
    assert cut_codes(np.array(counts), number).tolist() == bounds


def test_too_few_first_codes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"found 3 .* 2 first codes, of which the largest has 9 of 10 items"):
        cut_codes(np.array([9, 0, 1]), 3)


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ({"num_heads": 3, "d_model": 18}, "num_heads: found 3 for 2"),
        ({"d_ff": 33}, "d_ff: found 33 for 2"),
        ({"num_experts": 2, "expert_d_ff": 9}, "expert_d_ff: found 9 for 2"),
        ({"context": "lazy", "num_heads": 6, "d_model": 18, "num_kv_heads": 3}, "num_kv_heads: found 3 for 2"),
    ],
)
def test_what_does_not_divide_is_refused(shape: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{found} processes, expected a multiple"):
        check_divisible(OneRecConfig(codes_per_level=SIZES, num_items=NUM_ITEMS, **{**SHAPE, **shape}), 2)


def test_what_is_done_by_one_process_alone_is_refused() -> None:
    pair = Processes(0, 2, torch.device("cpu"))
    recommender = make_recommender("plain")
    recommender.precision = "int8"
    with pytest.raises(ConfigError, match="found int8 for several processes"):
        ParallelRecommender(recommender, pair)
    recommender = make_recommender("plain")
    recommender.dense_candidates = 5
    with pytest.raises(ConfigError, match="dense_candidates: found 5 for several processes"):
        ParallelRecommender(recommender, pair)
    recommender = make_recommender("plain")
    recommender.model.decoder.compiled = True
    with pytest.raises(ConfigError, match="compile: found true for several processes"):
        ParallelRecommender(recommender, pair)


def test_without_deepspeed_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ConfigError, match=r"not installed .* \.\[deepspeed\]"):
        ParallelRecommender(make_recommender("plain"), Processes(0, 2, torch.device("cpu")))
