import pytest

from onerec.data.sources import available_sources, find_source
from onerec.errors import ConfigError


def test_own_tables_and_folders_are_there_and_all_names_differ() -> None:
    sources = available_sources()
    assert {"parquet", "folder"} <= set(sources)
    for name, source in sources.items():
        assert source.name == name
        assert source.licence


def test_unknown_source_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"found 'parket', expected one of .*Did you mean 'parquet'"):
        find_source("parket")
