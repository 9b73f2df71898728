"""Replicas of the endpoint under Ray Serve: the same application, as many times as the load asks for.

Each replica is what `run_server` runs, less the listening: Ray's proxy hands requests on to it. All keep histories and
changes of the catalogue in one Redis, where each looks for the others' changes before it answers. Deployed again, with
another bundle or other settings, replicas are replaced one after the other: a new one starts beside the old ones, and
an old one goes when the requests that it has are answered.
"""

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from onerec.errors import ConfigError, ServingError
from onerec.serving.limits import Limits
from onerec.serving.ray_cluster import start_ray
from onerec.serving.server import (
    SHUTDOWN_SECONDS,
    LogFormat,
    load_engine,
    missing_package,
    open_app,
    spare_collector,
)
from onerec.serving.stores import is_redis

if TYPE_CHECKING:
    from fastapi import FastAPI

    from onerec.serving.access import Keys

_NAME = "onerec"
_PACKAGES = ("ray", "fastapi", "starlette", "uvicorn", "prometheus_client")


class ReplicaSettings(Limits):
    """Limits of a request, of each replica's own line, and how many replicas there are."""

    min_replicas: PositiveInt = Field(2, description="replicas that are always there")
    max_replicas: PositiveInt = Field(2, description="replicas that the load may bring about")
    target_requests: PositiveFloat = Field(
        32.0, description="requests under way in a replica, on average, beyond which more replicas start"
    )
    upscale_delay_s: PositiveFloat = Field(30.0, description="seconds of more load before replicas start")
    downscale_delay_s: PositiveFloat = Field(600.0, description="seconds of less load before replicas go")
    cpus: PositiveFloat = Field(1.0, description="processor cores of one replica, which also bound its threads")
    surge_percent: NonNegativeInt = Field(
        25,
        le=100,
        description="replicas, in percent, that may start beside the others while all are replaced; they "
        "want their cores, too; 0 stops the old ones first",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "ReplicaSettings":
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas: found {self.min_replicas}, expected at most max_replicas, {self.max_replicas}"
            )
        return self


def run_replicas(
    bundle_folder: Path,
    listen: tuple[str, int],
    settings: ReplicaSettings,
    histories: str | Path | None,
    cluster: str | None = None,
    log_format: LogFormat = "text",
    traces: str | None = None,
) -> None:
    """Deploy replicas; in a cluster of their own until SIGTERM or SIGINT, else until they all answer.

    Args:
        listen: host and port of the proxies; a cluster that has proxies keeps its own.
        histories: address of a Redis.
        cluster: address of a running Ray, such as `auto`; None to start one here.

    Raises:
        ConfigError: packages of the extra `ray` are not installed, histories that replicas cannot share, or no port.
        ArtifactError: the bundle is damaged; what is deployed serves on.
        ServingError: Ray cannot be reached, or the replicas do not start.
    """
    _require_shared(histories)
    if listen[1] == 0:
        raise ConfigError(
            "port: found 0, expected a number, for the proxies of all machines to listen on the same one."
        )
    try:
        import ray
        from ray import serve
        from ray.exceptions import RayError

        from onerec.serving.access import Keys
    except ModuleNotFoundError as error:
        raise missing_package(error, _PACKAGES, "ray") from None
    keys = Keys.from_environment()
    load_engine(bundle_folder, settings)  # a bundle that cannot be loaded is to meet no replica
    try:
        address = start_ray(cluster)
        serve.start(http_options={"host": listen[0], "port": listen[1]})
        parts = (str(bundle_folder.resolve()), settings, str(histories), keys, log_format, traces)
        serve.run(application(*parts), name=_NAME)
    except (ConnectionError, RuntimeError, RayError) as error:
        raise ServingError(f"the replicas could not be deployed ({error}). See Ray's own log.") from error
    where = f"http://{listen[0]}:{listen[1]}/v1/recommend"
    print(f"Serving {bundle_folder} at {where}; --cluster {address} replaces it", flush=True)
    if cluster is None:
        _wait_for_signal()
        serve.shutdown()
        ray.shutdown()


def application(
    bundle_folder: str,
    settings: ReplicaSettings,
    histories: str,
    keys: "Keys",
    log_format: LogFormat,
    traces: str | None,
) -> Any:
    """The deployment that Ray runs; each replica builds the application by itself."""
    from ray import serve

    def build() -> "FastAPI":
        return build_replica(bundle_folder, settings, histories, keys, log_format, traces)

    return serve.deployment(name=_NAME, **deployment_options(settings))(serve.ingress(build)()).bind()


def deployment_options(settings: ReplicaSettings) -> dict[str, Any]:
    """What Ray is told of the deployment."""
    return {
        "autoscaling_config": {
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_requests,
            "upscale_delay_s": settings.upscale_delay_s,
            "downscale_delay_s": settings.downscale_delay_s,
        },
        "ray_actor_options": {"num_cpus": settings.cpus},
        # Above all that a replica holds before it refuses: a request that waits in Ray's proxy has no deadline.
        "max_ongoing_requests": 4 * settings.max_waiting,
        "max_surge_percent": settings.surge_percent,
        "graceful_shutdown_timeout_s": SHUTDOWN_SECONDS,
    }


def build_replica(
    bundle_folder: str,
    settings: ReplicaSettings,
    histories: str,
    keys: "Keys",
    log_format: LogFormat,
    traces: str | None,
) -> "FastAPI":
    """The application of one replica, in the process that answers by it."""
    import logging.config

    from kernels.memory import keep_freed_memory
    from onerec.serving.logs import log_config

    keep_freed_memory()
    if log_format == "json":  # else Ray's own
        logging.config.dictConfig(log_config(log_format))
    app = open_app(load_engine(Path(bundle_folder), settings, log_format), histories, keys, traces, alone=False)
    spare_collector()
    return app


def _require_shared(histories: str | Path | None) -> None:
    """Raise ConfigError for a place that replicas cannot share; Ray may start them on several machines."""
    if histories is None or not is_redis(histories):
        found = "none" if histories is None else f"the SQLite file {histories}"
        raise ConfigError(
            f"histories: found {found}, expected the address of a Redis, which replicas share. "
            "Give it, such as --histories redis://localhost:6379/0."
        )


def _wait_for_signal() -> None:
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
