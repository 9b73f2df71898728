"""One file per public set, plus one's own Parquet tables: each module lists its sources in a tuple `SOURCES`."""

import importlib
import pkgutil

from onerec.data.tables import Source
from onerec.errors import ConfigError, suggest_nearest


def available_sources() -> dict[str, Source]:
    """Every source, by the name that `data.source` takes."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {source.name: source for module in modules for source in getattr(module, "SOURCES", ())}


def find_source(name: str) -> Source:
    """The source of this name.

    Raises:
        ConfigError: no such source; the message names the nearest.
    """
    sources = available_sources()
    if name not in sources:
        hint = suggest_nearest(name, sources, cutoff=0.6)
        raise ConfigError(f"data.source: found {name!r}, expected one of {', '.join(sorted(sources))}.{hint}")
    return sources[name]
