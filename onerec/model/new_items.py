"""A model over a catalogue that has grown: the rows of old items stay, those of new ones start among their kin.

What a model knows of an item beside its codes is a row of its own in each table of items. A new item's row starts as
the mean of the rows of those items that share the longest prefix of its codes, so that it begins where the items most
like it lie, and as the mean of all rows where nobody shares its first code.

Shapes: N items, M of them new, O old, L code levels, E width of a row.
"""

import copy

import numpy as np
import torch
from torch import Tensor

from onerec.errors import ArtifactError
from onerec.model.onerec import OneRec
from tokenizer.pieces import SemanticIdPieces
from tokenizer.table import SemanticIdTable


def with_new_items(model: OneRec, table: SemanticIdTable, pieces: SemanticIdPieces | None = None) -> OneRec:
    """The model over all items of a table whose first items are its own; the model itself where none is new.

    Args:
        pieces: cut semantic IDs, where the model reads their pieces.

    Raises:
        ArtifactError: the table's first items have other codes than the model's, the model reads pieces and none are
            given, or its pathways hold what was fitted to the old catalogue alone.
    """
    num_old = model.config.num_items
    _require_kept_codes(model, table)
    if table.num_items == num_old:
        return model
    if model.encoder.pathways is not None:
        raise ArtifactError(
            "model: found pathways, whose features were fitted to its own catalogue; expected none. Train a model "
            "without model.pathways to let its catalogue grow."
        )
    config = copy.deepcopy(model.config)
    config.num_items = table.num_items
    grown = OneRec(config).train(model.training)
    own, codes_ML = model.state_dict(), table.codes_NL[num_old:]
    with torch.no_grad():
        for name, rows in grown.state_dict().items():
            if rows.shape == own[name].shape:
                rows.copy_(own[name])
            elif rows.is_floating_point():  # codes and pieces are set below
                rows[:num_old] = own[name]
                rows[num_old:] = kin_means(own[name], table.codes_NL[:num_old], codes_ML)
    grown.set_codes(table.codes_NL, table.content_hash)
    if config.num_pieces:
        _set_pieces(grown, table, pieces)
    return grown.to(model.device)


def kin_means(rows_OE: Tensor, codes_OL: np.ndarray, new_codes_ML: np.ndarray) -> Tensor:
    """Mean (M, E) of the rows of the old items that share each new item's longest prefix of codes."""
    means_ME = rows_OE.mean(dim=0).expand(len(new_codes_ML), -1).clone()
    both_NL = np.concatenate([codes_OL, new_codes_ML])
    group_N = np.zeros(len(both_NL), dtype=np.int64)
    for codes_N in both_NL.T:  # a group is a prefix, one code longer in each round
        _, group_N = np.unique(group_N * (codes_N.max() + 1) + codes_N, return_inverse=True)
        group_O, group_M = (torch.from_numpy(part).to(rows_OE.device) for part in np.split(group_N, [len(codes_OL)]))
        counts = torch.bincount(group_O, minlength=int(group_N.max()) + 1)
        sums = rows_OE.new_zeros(len(counts), rows_OE.size(1)).index_add_(0, group_O, rows_OE)
        has_kin_M = counts[group_M] > 0
        means_ME[has_kin_M] = sums[group_M[has_kin_M]] / counts[group_M[has_kin_M], None]
    return means_ME


def _require_kept_codes(model: OneRec, table: SemanticIdTable) -> None:
    num_old = model.config.num_items
    own_OL = model.codes_of(torch.arange(num_old, device=model.device)).cpu().numpy()
    sizes, found = model.config.codes_per_level, list(table.codes_per_level)
    if found != sizes or not np.array_equal(own_OL, table.codes_NL[:num_old]):
        raise ArtifactError(
            f"ID table {table.content_hash}: found other codes than those of the {num_old} items that the model was "
            f"trained on (its table: {model.config.table_hash}). Assign new items to the tokenizer of this model."
        )


def _set_pieces(model: OneRec, table: SemanticIdTable, pieces: SemanticIdPieces | None) -> None:
    if pieces is None:
        raise ArtifactError("model: it reads pieces of semantic IDs and none were given. Give those of its tokenizer.")
    cut = pieces.encode(table.codes_NL)
    model.set_pieces(cut.pieces_P, cut.offsets)
