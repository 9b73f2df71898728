"""The tree of prefixes and the logits that its vectors give, by hand and against a loop over all items."""

from itertools import product

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from onerec.model.prefixes import PrefixHeads, PrefixTree

CODES_NL = np.array([[1, 0, 2], [0, 2, 1], [1, 0, 0], [0, 2, 1], [1, 3, 0]])
SIZES = [2, 4, 3]


def test_nodes_and_children_by_hand() -> None:
    tree = PrefixTree(CODES_NL, SIZES, torch.device("cpu"))
    assert [nodes.tolist() for nodes in tree.nodes] == [[0, 1], [2, 4, 7], [7, 12, 14, 21]]
    second = tree.children(torch.tensor([1, 0, 1]), level=1)  # below the first codes 1, 0 and 1
    assert second.owners_C.tolist() == [0, 0, 1, 2, 2]
    assert second.rows_C.tolist() == [1, 2, 0, 1, 2]
    assert second.codes_C.tolist() == [0, 3, 2, 0, 3]
    third = tree.children(torch.tensor([3, 4]), level=2)  # no item begins with (0, 3), two begin with (1, 0)
    assert third.owners_C.tolist() == [1, 1]
    assert third.codes_C.tolist() == [0, 2]


def test_a_node_has_the_mean_vector_of_the_items_below() -> None:
    vectors_NE = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])
    first, second, third = PrefixTree(CODES_NL, SIZES, torch.device("cpu")).pool(vectors_NE).levels
    assert first.flatten().tolist() == [5.0, 7.0]
    assert second.flatten().tolist() == [5.0, 2.5, 16.0]
    assert third.flatten().tolist() == [5.0, 4.0, 1.0, 16.0]


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return rng.integers(0, sizes, (draw(st.integers(1, 20)), len(sizes))), sizes


@given(tables())
@settings(max_examples=50, deadline=None)
def test_logits_are_those_of_a_loop_over_all_items(table: tuple[np.ndarray, list[int]]) -> None:
    codes_NL, sizes = table
    config = OneRecConfig(codes_per_level=sizes, num_items=len(codes_NL), d_model=8, embedding_dim=5, num_heads=2)
    heads, tree = PrefixHeads(config), PrefixTree(codes_NL, sizes, torch.device("cpu"))
    vectors_NE = torch.randn(len(codes_NL), 5)
    pooled = tree.pool(vectors_NE)
    for level in range(len(sizes)):
        prefixes = list(product(*(range(size) for size in sizes[:level])))
        states_RD = torch.randn(len(prefixes), 8)
        before_RK = torch.randn(len(prefixes), sizes[level])
        found_RK = heads(before_RK.clone(), states_RD, level, torch.arange(len(prefixes)), pooled) - before_RK
        for prefix, state_D, found_K in zip(prefixes, states_RD, found_RK, strict=True):
            for code in range(sizes[level]):
                below_N = (codes_NL[:, : level + 1] == [*prefix, code]).all(axis=1)
                mean_E = vectors_NE[below_N].mean(dim=0) if below_N.any() else torch.zeros(5)
                torch.testing.assert_close(found_K[code], heads.queries[level](state_D) @ mean_E, atol=1e-6, rtol=1e-4)


def test_gradients_reach_queries_and_vectors() -> None:
    config = OneRecConfig(codes_per_level=SIZES, num_items=5, d_model=8, num_heads=2)
    heads, tree = PrefixHeads(config), PrefixTree(CODES_NL, SIZES, torch.device("cpu"))
    vectors_NE = torch.randn(5, 8, requires_grad=True)
    states_RD = torch.randn(2, 8, requires_grad=True)
    nothing_RK = torch.zeros(2, SIZES[1])
    heads(nothing_RK, states_RD, 1, torch.tensor([1, 0]), tree.pool(vectors_NE)).square().sum().backward()
    for leaf in (vectors_NE, states_RD):
        assert leaf.grad is not None
        assert leaf.grad.abs().sum(dim=1).all()


def test_a_model_that_decoded_first_can_be_trained() -> None:
    model = OneRec(OneRecConfig(codes_per_level=SIZES, num_items=5, d_model=8, num_heads=2, prefix_vectors=True))
    model.set_codes(CODES_NL, "hash")
    with torch.inference_mode():
        context = model.encode(torch.tensor([[1, 3]]), torch.tensor([2]))
        model.decode_step(None, 0, context, model.new_cache())
    model(input_ids=torch.tensor([[2, 4]]), target_items=torch.tensor([[1]])).loss.backward()
    assert model.encoder.embedding.codes.weight.grad is not None
