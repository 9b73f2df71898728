"""Offsets held in blocks, against the plain ones."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onerec.decoding.child_offsets import ChildOffsets


@given(
    seed=st.integers(0, 2**16),
    num_nodes=st.sampled_from([1, 2, 31, 32, 33, 64, 500]),
    most=st.sampled_from([1, 3, 7, 8, 60, 1100, 2**16]),
    largest=st.sampled_from([0, 255, 256, 2**15 - 1, 2**15, 2**16, 10**6]),
    barren=st.booleans(),
)
def test_every_node_has_its_children_and_every_child_its_node(
    seed: int, num_nodes: int, most: int, largest: int, barren: bool
) -> None:
    """Some nodes may have no child, and one of them a great many."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(0 if barren else 1, most + 1, size=num_nodes)
    counts[generator.integers(num_nodes)] += max(largest, 1)
    plain = torch.from_numpy(np.append(0, counts.cumsum()).astype(np.int32))
    offsets = ChildOffsets.of(plain)
    torch.testing.assert_close(offsets.plain(), plain)
    nodes = torch.from_numpy(generator.integers(num_nodes, size=(3, 40)))
    begins, ends = offsets.ranges(nodes)
    torch.testing.assert_close(begins, plain[nodes])
    torch.testing.assert_close(ends, plain[nodes + 1])
    assert [edge.tolist() for edge in offsets.ranges(torch.tensor([num_nodes]))] == [[plain[-1]], [plain[-1]]]
    edges = torch.cat([plain[:-1], plain[1:] - 1])
    children = torch.cat(
        [edges.clamp(0, int(plain[-1]) - 1).long(), torch.from_numpy(generator.integers(plain[-1], size=9))]
    )
    expected = torch.searchsorted(plain, children, right=True) - 1
    assert offsets.parents(children).tolist() == expected.tolist()
    assert [int(offsets.parents(child[None])) for child in children[:20]] == expected[:20].tolist()


@pytest.mark.parametrize(
    ("most", "dtype"),
    [(255, torch.uint8), (256, torch.int16), (2**15 - 1, torch.int16), (2**15, torch.int32), (2**30, torch.int32)],
)
def test_steps_are_as_narrow_as_their_widest_block_lets_them_be(most: int, dtype: torch.dtype) -> None:
    counts = torch.ones(96, dtype=torch.int32)
    counts[40] = most - 31
    plain = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
    offsets = ChildOffsets.of(plain)
    assert offsets.steps.dtype == dtype
    torch.testing.assert_close(offsets.plain(), plain)


def test_nodes_of_few_children_take_little_more_than_a_byte() -> None:
    offsets = ChildOffsets.of(torch.arange(32 * 1000 + 1, dtype=torch.int32))
    assert offsets.nbytes == 1001 * (4 + 33)
    assert offsets.to("meta").steps.is_meta
