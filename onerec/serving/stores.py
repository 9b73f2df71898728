"""Where the server keeps what must outlive it: an SQLite file, or a Redis named by its address."""

from pathlib import Path

from onerec.errors import ConfigError
from onerec.serving.changes import ChangeStore, SqliteChanges
from onerec.serving.histories import HistoryStore, SqliteHistories

_SCHEMES = ("redis://", "rediss://", "unix://")


def is_redis(place: str | Path) -> bool:
    """Whether a place is the address of a Redis, not a path."""
    return isinstance(place, str) and place.startswith(_SCHEMES)


def open_stores(place: str | Path) -> tuple[HistoryStore, ChangeStore]:
    """Histories and changes of the catalogue, kept in one place.

    Args:
        place: path of an SQLite file, made where it does not exist, or such as `redis://HOST:6379/0`.

    Raises:
        ServingError: the file cannot be opened, or no Redis answers there.
        ConfigError: a Redis without the package that talks to it.
    """
    if not is_redis(place):
        return SqliteHistories(Path(place)), SqliteChanges(Path(place))
    try:
        from onerec.serving.redis_stores import RedisChanges, RedisConnection, RedisHistories
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise ConfigError(
            "histories in Redis need the package redis, which is not installed. "
            "Install the extra: pip install '.[serve]'"
        ) from None
    connection = RedisConnection(str(place))
    return RedisHistories(connection), RedisChanges(connection)
