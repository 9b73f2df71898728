"""One process: load the bundle, listen, answer until told to stop."""

import gc
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from onerec.decoding.parallel.processes import Processes
from onerec.errors import ConfigError, ServingError
from onerec.serving.limits import Limits

if TYPE_CHECKING:
    from fastapi import FastAPI

    from onerec.serving.access import Keys
    from onerec.serving.engine import Engine

LogFormat = Literal["text", "json"]
SHUTDOWN_SECONDS = 30  # that requests in flight may still take after SIGTERM
_NEW_OBJECTS = 20_000  # before the garbage collector reads them; the objects of some hundred requests
_PACKAGES = ("fastapi", "starlette", "uvicorn", "prometheus_client")


def run_server(
    bundle_folder: Path,
    host: str,
    port: int,
    limits: Limits,
    histories: str | Path,
    log_format: LogFormat = "text",
    traces: str | None = None,
) -> None:
    """Serve a bundle until SIGTERM or SIGINT; requests in flight are answered first.

    Of several processes that torchrun has started the first serves, and the others decode with it.

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

        from onerec.serving.access import Keys
        from onerec.serving.engine_processes import help_to_serve, shared_out
        from onerec.serving.logs import log_config
    except ModuleNotFoundError as error:
        raise missing_package(error, _PACKAGES, "serve") from None
    keys = Keys.from_environment()
    processes = Processes.join() if Processes.are_several() else None
    if processes is not None and not processes.is_leader:
        help_to_serve(bundle_folder, processes, limits.precision)
        return
    engine = load_engine(bundle_folder, limits, log_format)
    with _listen(host, port) as listener, shared_out(engine, processes):
        app = open_app(engine, histories, keys, traces)
        spare_collector()
        config = uvicorn.Config(app, timeout_graceful_shutdown=SHUTDOWN_SECONDS, log_config=log_config(log_format))
        address = f"[{host}]" if ":" in host else host
        print(f"Serving {bundle_folder} at http://{address}:{listener.getsockname()[1]}/v1/recommend", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


def load_engine(bundle_folder: Path, limits: Limits, log_format: LogFormat = "text") -> "Engine":
    """The engine of a bundle; errors as `run_server` has them."""
    from transformers.utils.logging import disable_progress_bar

    from onerec.bundle import Bundle
    from onerec.serving.engine import Engine

    if log_format == "json":
        disable_progress_bar()  # which would write between the log's lines
    return Engine(Bundle.load(bundle_folder), limits)


def open_app(
    engine: "Engine", histories: str | Path, keys: "Keys", traces: str | None = None, alone: bool = True
) -> "FastAPI":
    """The application around an engine, on what is stored; errors as `run_server` has them.

    Args:
        alone: no other process answers the same address, see `create_app`.
    """
    from onerec.serving.app import create_app
    from onerec.serving.stores import open_stores
    from onerec.serving.traces import traces_to

    events, changes = open_stores(histories)
    return create_app(engine, events, keys, changes, traces_to(traces), alone)


def spare_collector() -> None:
    """Let the garbage collector pass over all that is loaded by now and stays: PyTorch, the bundle, the application.

    To read it all takes some tenths of a second, for which nothing else runs; and it was read again and again, as
    answers to many requests grow old enough to call for a whole collection. What a batch in work holds is not read
    again and again either: all but little of it goes with its last reference.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])


def missing_package(error: ModuleNotFoundError, packages: Sequence[str], extra: str) -> Exception:
    """What to raise where an import failed: ConfigError for one of the packages of an extra, else the error itself."""
    if error.name not in packages:
        return error
    return ConfigError(
        f"serving needs the package {error.name}, which is not installed. Install the extra: pip install '.[{extra}]'"
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ServingError(f"cannot listen on {host} port {port} ({error}). Choose another --host or --port.") from None
