from pathlib import Path

import numpy as np
import pytest

from tokenizer.errors import DataError
from tokenizer.sequences import Sequences


def _write(folder: Path, **arrays: list[int]) -> None:
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", np.array(values))


def test_keeps_training_events_only(tmp_path: Path) -> None:
    _write(tmp_path, offsets=[0, 3, 3, 7], items=[5, 6, 7, 1, 2, 3, 4], splits=[0, 1, 2, 0, 0, 1, 2])
    sequences = Sequences.load_training(tmp_path)
    np.testing.assert_array_equal(sequences.offsets, [0, 1, 1, 3])
    np.testing.assert_array_equal(sequences.items, [5, 1, 2])


def test_files_that_disagree(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the events"):
        Sequences.load_training(tmp_path)
    _write(tmp_path, offsets=[0, 2], items=[5, 6], splits=[0])
    with pytest.raises(DataError, match="1 split labels for 2 events"):
        Sequences.load_training(tmp_path)
    with pytest.raises(DataError, match="offsets do not cut"):
        Sequences(np.array([0, 3]), np.array([1, 2]))


def test_item_of_another_catalogue() -> None:
    sequences = Sequences(np.array([0, 2]), np.array([1, 4]))
    np.testing.assert_array_equal(sequences.item_counts(5), [0, 1, 0, 0, 1])
    with pytest.raises(DataError, match=r"run from 1 to 4, expected 0\.\.3"):
        sequences.item_counts(4)
