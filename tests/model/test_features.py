"""Buckets by hand, what is missing, and features that begin by saying nothing."""

import torch
from torch import nn

from onerec.data.features import key_of
from onerec.data.pathway_settings import CategorySpec, NumberSpec, PathwaySettings, PathwaySpec
from onerec.model.features import EventFeatures, NumberEmbedding, ZeroLinear, category_tables


def test_numbers_fall_into_their_buckets() -> None:
    table = NumberEmbedding(NumberSpec(name="rating", edges=(2.5, 3.5)), width=1)
    with torch.no_grad():
        table.buckets.weight.copy_(torch.arange(4.0)[:, None])
    values = torch.tensor([-1.0, 2.5, 3.0, 3.5, 9.0, float("nan")])
    assert table(values)[:, 0].tolist() == [1, 2, 2, 3, 3, 0]


def test_a_number_without_edges_tells_whether_it_is_known() -> None:
    table = NumberEmbedding(NumberSpec(name="watched", edges=()), width=3)
    known, missing = table(torch.tensor([7.0, float("nan")]))
    torch.testing.assert_close(known, table.buckets.weight[1])
    torch.testing.assert_close(missing, table.buckets.weight[0])


def test_missing_numbers_start_at_zero() -> None:
    table = NumberEmbedding(NumberSpec(name="rating", edges=(2.5,)), width=3)
    table.buckets.start()
    torch.testing.assert_close(table(torch.tensor([float("nan")])), torch.zeros(1, 3))
    assert table(torch.tensor([1.0])).any()


def make_features(*names: str) -> tuple[EventFeatures, nn.ModuleList]:
    torch.manual_seed(0)
    categories = tuple(CategorySpec(name=name, num_own=0, num_shared=97) for name in ("genre", "author"))
    numbers = tuple(NumberSpec(name=name, edges=(0.5,)) for name in ("like", "rating"))
    spec = PathwaySpec(settings=PathwaySettings(), categories=categories, numbers=numbers)
    return EventFeatures(spec, names, embedding_dim=4, width=2), category_tables(categories, num_hashes=1, width=2)


def inputs(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    plain = {
        "items_BSD": torch.ones(1, 1, 4),
        "keys_BSF": torch.ones(1, 1, 2).long(),
        "values_BSE": torch.zeros(1, 1, 2),
    }
    return {**plain, **changes}


def test_a_pathway_reads_its_own_features_alone() -> None:
    features, tables = make_features("author", "rating")
    plain = features(**inputs(), tables=tables)
    genre, author = torch.tensor([[[key_of("war"), 1]]]), torch.tensor([[[1, key_of("war")]]])
    like, rating = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    for changed in ({"keys_BSF": genre}, {"values_BSE": like}):
        torch.testing.assert_close(features(**inputs(**changed), tables=tables), plain)
    for changed in ({"keys_BSF": author}, {"values_BSE": rating}):
        assert not torch.allclose(features(**inputs(**changed), tables=tables), plain)


def test_a_pathway_without_features_is_its_items() -> None:
    features, tables = make_features()
    assert features.mixer is None
    torch.testing.assert_close(features(**inputs(), tables=tables), torch.ones(1, 1, 4))


def test_new_features_say_nothing() -> None:
    features, tables = make_features("genre", "like")
    assert features.mixer is not None
    assert isinstance(features.mixer.output, ZeroLinear)
    features.mixer.output.start()
    torch.testing.assert_close(features(**inputs(), tables=tables), torch.ones(1, 1, 4))
