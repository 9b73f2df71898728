"""Small catalogues that tests of the trie and of what it leaves out share."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

# In code order: 010 is item 2, 012 item 5, 030 item 1, 201 item 4, 202 item 0, 203 item 3.
CODES_NL = np.array([[2, 0, 2], [0, 3, 0], [0, 1, 0], [2, 0, 3], [2, 0, 1], [0, 1, 2]])
SIZES = (3, 4, 4)


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...], np.ndarray]:
    """Codes, sizes and bucket ranks of a random catalogue, with shared codes."""
    sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    num_items = draw(st.integers(1, 40))
    codes_NL = draw(arrays(np.int64, (num_items, len(sizes)), elements=st.integers(0, 2**31 - 1))) % np.array(sizes)
    return codes_NL, sizes, np.random.default_rng(0).permutation(num_items)
