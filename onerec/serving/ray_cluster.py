"""A Ray to work in: one that runs already, or one of our own."""

import os
from typing import Any


def start_ray(cluster: str | None) -> str:
    """Join a running Ray, or start one on this machine, which ends with the process; its address.

    Args:
        cluster: address of a running one, such as `auto`; None to start one.

    Raises:
        ConnectionError: nothing runs there.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray reports to its makers
    own: dict[str, Any] = {"include_dashboard": False} if cluster is None else {}
    context: Any = ray.init(address=cluster or "local", **own)
    return str(context.address_info["address"])
