"""Pieces of semantic IDs: every ID is cut without a rest, often-met ones into fewer pieces."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer.errors import ArtifactError, ConfigError, DataError
from tokenizer.pieces import PieceModel, SemanticIdPieces

SIZES = (4, 4, 4)
CODES = np.array([[0, 1, 2], [0, 1, 3], [2, 0, 0], [3, 3, 1], [1, 2, 3]])
NUM_EVENTS = np.array([900, 2, 1, 0, 0])


def fit(model: PieceModel = "unigram", vocabulary_size: int = 14) -> SemanticIdPieces:
    return SemanticIdPieces.fit(CODES, SIZES, NUM_EVENTS, vocabulary_size, model)


def cut(pieces: SemanticIdPieces, codes_NL: np.ndarray) -> list[list[tuple[tuple[int, int], ...]]]:
    """The (level, code) pairs of each piece of each item."""
    item_pieces = pieces.encode(codes_NL)
    bounds = zip(item_pieces.offsets[:-1], item_pieces.offsets[1:], strict=True)
    return [[pieces.codes_of_piece(int(piece)) for piece in item_pieces.pieces_P[a:b]] for a, b in bounds]


@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_what_is_met_often_is_one_piece_and_what_is_rare_several(model: PieceModel) -> None:
    often, *_, never = cut(fit(model), CODES)
    assert often == [((0, 0), (1, 1), (2, 2))]
    assert never == [((0, 1),), ((1, 2),), ((2, 3),)]


def test_a_shared_prefix_becomes_a_piece() -> None:
    codes_NL = np.array([[0, 1, code] for code in range(4)])
    pieces = SemanticIdPieces.fit(codes_NL, SIZES, np.full(4, 9), vocabulary_size=13, model="bpe")  # room for one more
    assert cut(pieces, codes_NL) == [[((0, 0), (1, 1)), ((2, code),)] for code in range(4)]


@given(st.data())
@settings(max_examples=30)
def test_pieces_spell_the_codes_of_old_and_new_items(data: st.DataObject) -> None:
    rows = st.lists(st.tuples(*(st.integers(0, size - 1) for size in SIZES)), min_size=1, max_size=20)
    known, new = np.array(data.draw(rows)), np.array(data.draw(rows))
    num_events_N = np.array(data.draw(st.lists(st.integers(0, 99), min_size=len(known), max_size=len(known))))
    model = data.draw(st.sampled_from(["unigram", "bpe"]))
    pieces = SemanticIdPieces.fit(known, SIZES, num_events_N, data.draw(st.integers(13, 40)), model)
    for codes_NL in (known, new):
        encoded = pieces.encode(codes_NL)
        assert ((encoded.pieces_P >= 0) & (encoded.pieces_P < pieces.vocabulary_size)).all()
        for codes_L, parts in zip(codes_NL.tolist(), cut(pieces, codes_NL), strict=True):
            assert [pair for part in parts for pair in part] == list(enumerate(codes_L))


def test_more_codes_than_one_plane_of_characters_holds() -> None:
    sizes = (65536, 300)
    codes_NL = np.array([[0, 0], [65533, 1], [65534, 2], [65535, 299]])
    pieces = SemanticIdPieces.fit(codes_NL, sizes, np.zeros(4, dtype=int), sum(sizes) + 1, "bpe")
    spelt = [[pair for part in parts for pair in part] for parts in cut(pieces, codes_NL)]
    assert spelt == [list(enumerate(codes_L)) for codes_L in codes_NL.tolist()]


def test_saved_pieces_are_the_same(tmp_path: Path) -> None:
    pieces = fit()
    pieces.save(tmp_path / "pieces.model")
    loaded = SemanticIdPieces.load(tmp_path / "pieces.model", SIZES)
    assert loaded.vocabulary_size == pieces.vocabulary_size
    np.testing.assert_array_equal(loaded.encode(CODES).pieces_P, pieces.encode(CODES).pieces_P)


def test_the_same_events_give_the_same_pieces() -> None:
    np.testing.assert_array_equal(fit().encode(CODES).pieces_P, fit().encode(CODES).pieces_P)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vocabulary of 12, expected more than the 12 codes"):
        fit(vocabulary_size=12)
    with pytest.raises(ConfigError, match="expected at most 131068"):
        SemanticIdPieces.fit(CODES, (200_000, 4, 4), NUM_EVENTS, 300_000)
    with pytest.raises(DataError, match="5 semantic IDs and 4 event counts"):
        SemanticIdPieces.fit(CODES, SIZES, NUM_EVENTS[:4], 20)
    with pytest.raises(DataError, match="row 1, level 2, found 4, expected 0 to 3"):
        fit().encode(np.array([[0, 0, 0], [0, 0, 4]]))
    with pytest.raises(DataError, match="expected 3 a row"):
        fit().encode(CODES[:, :2])
    fit().save(tmp_path / "pieces.model")
    with pytest.raises(ArtifactError, match=r"fitted for other levels than \[5, 4, 4\]"):
        SemanticIdPieces.load(tmp_path / "pieces.model", (5, 4, 4))
    (tmp_path / "broken.model").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match="no SentencePiece model"):
        SemanticIdPieces.load(tmp_path / "broken.model", SIZES)
