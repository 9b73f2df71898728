"""One process: load the bundle, listen, answer until told to stop."""

import socket
from pathlib import Path
from typing import Literal

from onerec.errors import ConfigError, ServingError
from onerec.serving.limits import Limits

_SHUTDOWN_SECONDS = 30  # that requests in flight may still take after SIGTERM


def run_server(
    bundle_folder: Path,
    host: str,
    port: int,
    limits: Limits,
    histories: str | Path,
    log_format: Literal["text", "json"] = "text",
    traces: str | None = None,
) -> None:
    """Serve a bundle until SIGTERM or SIGINT; requests in flight are answered first.

    Args:
        histories: place of users' events and of the catalogue's changes, see `open_stores`.
        log_format: of what is written to the error stream; in `json` an object a line, one of them a request.
        traces: address of an OpenTelemetry collector, see `traces_to`.

    Raises:
        ConfigError: packages of the extra `serve` are not installed.
        ArtifactError: the bundle is missing, damaged, or made of parts that do not belong together.
        ServingError: the address cannot be listened on, the histories cannot be kept, or the catalogue's changes do not
            go with the bundle.
    """
    try:
        import uvicorn

        from onerec.serving.app import create_app
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "starlette", "uvicorn", "prometheus_client"):
            raise
        raise ConfigError(
            f"serving needs the package {error.name}, which is not installed. Install the extra: pip install '.[serve]'"
        ) from None
    from transformers.utils.logging import disable_progress_bar

    from onerec.bundle import Bundle
    from onerec.serving.access import Keys
    from onerec.serving.engine import Engine
    from onerec.serving.logs import log_config
    from onerec.serving.stores import open_stores
    from onerec.serving.traces import traces_to

    if log_format == "json":
        disable_progress_bar()  # which would write between the log's lines
    keys = Keys.from_environment()
    engine = Engine(Bundle.load(bundle_folder), limits)
    with _listen(host, port) as listener:
        events, changes = open_stores(histories)
        app = create_app(engine, events, keys, changes, traces_to(traces))
        logs = log_config(log_format) or uvicorn.config.LOGGING_CONFIG
        config = uvicorn.Config(app, timeout_graceful_shutdown=_SHUTDOWN_SECONDS, log_config=logs)
        address = f"[{host}]" if ":" in host else host
        print(f"Serving {bundle_folder} at http://{address}:{listener.getsockname()[1]}/v1/recommend", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ServingError(f"cannot listen on {host} port {port} ({error}). Choose another --host or --port.") from None
