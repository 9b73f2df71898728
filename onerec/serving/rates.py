"""How often one key may ask: a bucket of tokens for each, filled at a steady rate."""

import math
import time
from dataclasses import dataclass


class TooManyRequestsError(Exception):
    """A key that has asked more often than it may."""

    def __init__(self, wait_s: float) -> None:
        self.retry_after_s = max(1, math.ceil(wait_s))
        super().__init__(f"too many requests with this key. Try again in {self.retry_after_s} s.")


@dataclass
class _Bucket:
    tokens: float
    filled_s: float


class Rates:
    """Lets every key ask `per_s` times a second on average, a second's worth at once; None lets all through.

    A request for several things is let in while one token is left, and its key then owes the others.
    """

    def __init__(self, per_s: float | None) -> None:
        self._per_s = per_s
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key: str) -> None:
        """Take one token of a key.

        Raises:
            TooManyRequestsError: none is left; says when there will be one.
        """
        if self._per_s is None:
            return
        bucket, now_s = self._bucket(key), time.monotonic()
        most = max(1.0, self._per_s)
        bucket.tokens = min(most, bucket.tokens + self._per_s * (now_s - bucket.filled_s))
        bucket.filled_s = now_s
        if bucket.tokens < 1:
            raise TooManyRequestsError((1 - bucket.tokens) / self._per_s)
        bucket.tokens -= 1

    def owe(self, key: str, count: int) -> None:
        """Take more tokens, whether or not they are there."""
        if self._per_s is not None:
            self._bucket(key).tokens -= count

    def _bucket(self, key: str) -> _Bucket:
        assert self._per_s is not None
        return self._buckets.setdefault(key, _Bucket(max(1.0, self._per_s), time.monotonic()))
