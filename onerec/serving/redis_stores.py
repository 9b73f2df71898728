"""Histories and changes of the catalogue in a Redis, which several servers may share; as the SQLite stores do.

Whether what was acknowledged survives a power cut is Redis' own matter: it does with `appendonly yes` and
`appendfsync always`; the server's log says so where there is no append-only file at all.

Keys carry one hash tag, so that a transaction stays on one node of a cluster:
    {onerec}:arrivals        number of the last event or change
    {onerec}:events:USER     sorted set by timestamp; a member is the number of arrival and the item's id
    {onerec}:users           sorted set of users by the arrival of their last event
    {onerec}:items           hash of an item's id -> its change
    {onerec}:items:order     sorted set of items by the arrival of their first change
    {onerec}:items:version   number of writes of changes
    {onerec}:items:latest    sorted set of items by the version of their last change
"""

import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as SilentError
from redis.retry import Retry

from onerec.errors import OverloadedError, ServingError
from onerec.serving.changes import ItemChange, SupersededError, from_row, to_row
from onerec.serving.histories import StoredEvent

_ARRIVALS, _EVENTS, _USERS = "{onerec}:arrivals", "{onerec}:events:", "{onerec}:users"
_ITEMS, _ORDER = "{onerec}:items", "{onerec}:items:order"
_VERSION, _LATEST = "{onerec}:items:version", "{onerec}:items:latest"
_ARRIVAL_DIGITS = 16  # of a number that must sort as text; a score holds whole numbers below 2 ** 53 only
_TIMEOUT_S = 1.0
_PAUSE_S = 0.5  # after a failure, in which nobody waits for a Redis that is away
# Writes items and their changes, which come in turn behind the version after which they were made; nil where it is not
# the last one any more. A script, because Redis runs nothing else meanwhile.
_WRITE_CHANGES = """
local version = tonumber(redis.call('GET', KEYS[1]) or 0)
if ARGV[1] ~= '' and tonumber(ARGV[1]) ~= version then
    return nil
end
for place = 2, #ARGV, 2 do
    redis.call('HSET', KEYS[3], ARGV[place], ARGV[place + 1])
    redis.call('ZADD', KEYS[4], 'NX', redis.call('INCR', KEYS[2]), ARGV[place])
    redis.call('ZADD', KEYS[5], version + 1, ARGV[place])
end
return redis.call('INCR', KEYS[1])
"""

logger = logging.getLogger(__name__)


class RedisConnection:
    """A Redis whose failures are said as the server's own; safe to call from several threads.

    A call is repeated once, for a connection that was lost while nobody used it; all writes may be repeated.

    Raises:
        ServingError: no address of a Redis, or none answers there.
    """

    def __init__(self, address: str) -> None:
        self._silent_until_s = 0.0
        retry = Retry(NoBackoff(), 1)
        timeouts = {"socket_timeout": _TIMEOUT_S, "socket_connect_timeout": _TIMEOUT_S}
        try:
            self._client = Redis.from_url(address, decode_responses=True, retry=retry, **timeouts)
            persistence = self._client.info("persistence")
        except (RedisError, ValueError) as error:
            raise ServingError(
                f"histories: cannot be kept in that Redis ({error}). Start it, or give another --histories."
            ) from error
        if not persistence["aof_enabled"]:
            logger.warning("Redis keeps no append-only file: what was acknowledged is lost where it is killed")

    @contextmanager
    def use(self, failure: str) -> Iterator["Redis"]:
        """The client, whose errors become OverloadedError with `failure` in front."""
        if time.monotonic() < self._silent_until_s:
            raise OverloadedError(f"{failure} (Redis has just failed to answer).")
        try:
            yield self._client
        except RedisError as error:
            if isinstance(error, LostConnectionError | SilentError):
                self._silent_until_s = time.monotonic() + _PAUSE_S
            raise OverloadedError(f"{failure} ({error}).") from error

    def check(self) -> None:
        """Raise OverloadedError where Redis does not answer."""
        with self.use("Redis does not answer") as client:
            client.ping()

    def close(self) -> None:
        """Let go of all connections."""
        self._client.close()


class RedisHistories:
    """Histories in Redis."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    def append(self, events: Iterable[StoredEvent]) -> None:
        """Store all of the events or none.

        Raises:
            OverloadedError: Redis is away, or cannot write. Where only its answer was lost, the events are stored.
        """
        rows = list(events)
        with self._connection.use(f"events: could not be stored; none of {len(rows)} was acknowledged") as client:
            first = int(client.incrby(_ARRIVALS, len(rows))) - len(rows) + 1
            transaction = client.pipeline(transaction=True)
            for arrival, event in enumerate(rows, first):
                member = f"{arrival:0{_ARRIVAL_DIGITS}d}{event.item_id}"
                transaction.zadd(_EVENTS + event.user_id, {member: event.timestamp})
                transaction.zadd(_USERS, {event.user_id: arrival}, gt=True)
            transaction.execute()

    def newest(self, user_id: str, limit: int) -> list[StoredEvent]:
        """The newest events of a user, oldest first.

        Raises:
            OverloadedError: Redis is away.
        """
        with self._connection.use("user_id: the history cannot be read") as client:
            found: Any = client.zrange(_EVENTS + user_id, 0, limit - 1, desc=True, withscores=True)
        return [StoredEvent(user_id, member[_ARRIVAL_DIGITS:], timestamp) for member, timestamp in reversed(found)]

    def users(self, limit: int) -> list[str]:
        """Users with events, those of the newest ones first.

        Raises:
            OverloadedError: Redis is away.
        """
        with self._connection.use("users: cannot be read") as client:
            return list(client.zrange(_USERS, 0, limit - 1, desc=True))  # type: ignore[arg-type]

    def check(self) -> None:
        """Raise OverloadedError where Redis does not answer."""
        self._connection.check()

    def close(self) -> None:
        """Let go of all connections."""
        self._connection.close()


class RedisChanges:
    """Changes of the catalogue in Redis."""

    shared = True

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    def write(self, changes: Sequence[ItemChange], after: int | None = None) -> int:
        """Store all of the changes or none; the version that they made.

        Raises:
            SupersededError: there is a newer version than `after`. So it is, too, where they are stored but the answer
                was lost and the call repeated.
            OverloadedError: Redis is away, or cannot write. Where only its answer was lost, the changes are stored.
        """
        rows = [word for change in changes for word in (change.item_id, json.dumps(to_row(change)))]
        keys = (_VERSION, _ARRIVALS, _ITEMS, _ORDER, _LATEST)
        with self._connection.use("item: the change could not be stored; nothing was acknowledged") as client:
            version: Any = client.eval(_WRITE_CHANGES, len(keys), *keys, "" if after is None else after, *rows)
        if version is None:
            raise SupersededError
        return int(version)

    def version(self) -> int:
        """Number of writes so far.

        Raises:
            OverloadedError: Redis is away.
        """
        with self._connection.use("item: the changes cannot be read") as client:
            return int(client.get(_VERSION) or 0)

    def newer(self, version: int) -> list[ItemChange]:
        """What was written after a version, in the order in which items first changed.

        Raises:
            OverloadedError: Redis is away.
        """
        with self._connection.use("item: the changes cannot be read") as client:
            items: Any = client.zrange(_LATEST, f"({version}", "+inf", byscore=True)
            if not items:
                return []
            arrivals: Any = client.zmscore(_ORDER, items)
            rows: Any = client.hmget(_ITEMS, items)
        return [from_row(*json.loads(row)) for _, row in sorted(zip(arrivals, rows, strict=True))]

    def read(self) -> list[ItemChange]:
        """Everything stored, in the order in which items first changed.

        Raises:
            OverloadedError: Redis is away.
        """
        with self._connection.use("item: the changes cannot be read") as client:
            transaction = client.pipeline(transaction=True)
            transaction.zrange(_ORDER, 0, -1)
            transaction.hgetall(_ITEMS)
            order, rows = transaction.execute()
        return [from_row(*json.loads(rows[item_id])) for item_id in order]

    def find(self, item_id: str) -> ItemChange | None:
        """What is stored of one item.

        Raises:
            OverloadedError: Redis is away.
        """
        with self._connection.use("item: the changes cannot be read") as client:
            row = client.hget(_ITEMS, item_id)
        return None if row is None else from_row(*json.loads(row))

    def check(self) -> None:
        """Raise OverloadedError where Redis does not answer."""
        self._connection.check()

    def close(self) -> None:
        """Let go of all connections."""
        self._connection.close()
