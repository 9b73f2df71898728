"""Serve OneRec: `python serve.py --bundle runs/demo/bundle`, then POST to /v1/recommend.

    curl http://127.0.0.1:8000/v1/recommend --json '{"history": ["50", "181"], "k": 5}'

The page at / shows the answers. Events posted to /v1/events make histories that requests name by user_id. Keys in the
environment variable ONEREC_API_KEYS (commas between them) close the routes under /v1 to requests without
`Authorization: Bearer KEY`; the one in ONEREC_ADMIN_KEY opens PUT and DELETE of /v1/items/ID, which change the
catalogue, and /v1/admin/bundle, which serves another bundle, both without a pause.
GET /metrics counts for Prometheus, /readyz says which bundle answers, /openapi.json what may be asked. Stop it with
Ctrl-C or SIGTERM.
`python serve.py batch --help`: answer a table of users; killed, it goes on; under torchrun processes share the model.
`python serve.py ray --help`: serve by several replicas under Ray Serve.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kernels.memory import keep_freed_memory
from onerec.errors import OneRecError
from onerec.serving.limits import Limits
from onerec.serving.server import run_server
from tokenizer.settings import load_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until stopped, or answer a table of users; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    ways = {"batch": (_batch_parser, _run_batch), "ray": (_replicas_parser, _run_replicas)}
    parser, run = ways.get(words[0] if words else "", (_server_parser, _run_server))
    arguments = parser().parse_args(words[1:] if run is not _run_server else words)
    keep_freed_memory()
    try:
        run(arguments)
    except OneRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 0


def _run_server(arguments: argparse.Namespace) -> None:
    listen = (arguments.bundle, arguments.host, arguments.port, load_settings(Limits, overrides=arguments.overrides))
    histories = arguments.histories or arguments.bundle.parent / "histories.sqlite"
    run_server(*listen, histories, arguments.logs, arguments.traces)


def _run_replicas(arguments: argparse.Namespace) -> None:
    from onerec.serving.replicas import ReplicaSettings, run_replicas

    settings = load_settings(ReplicaSettings, overrides=arguments.overrides)
    options = (arguments.histories, arguments.cluster, arguments.logs, arguments.traces)
    run_replicas(arguments.bundle, (arguments.host, arguments.port), settings, *options)


def _run_batch(arguments: argparse.Namespace) -> None:
    from onerec.serving.batch import BatchSettings, choose_workers, run_batch

    settings = load_settings(BatchSettings, overrides=arguments.overrides)
    workers = choose_workers(arguments.ray, arguments.cluster)
    num_users = run_batch(arguments.bundle, arguments.users, arguments.out, arguments.histories, settings, workers)
    if num_users is not None:
        print(f"{arguments.out}: {num_users:,} users answered")


def _server_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="serve.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    _add_listening(parser)
    parser.add_argument(
        "--histories",
        help="SQLite file of users' events and catalogue changes (default: histories.sqlite beside the bundle),\n"
        "or the address of a Redis, such as redis://localhost:6379/0",
    )
    _add_overrides(parser, "LIMIT", f"limit or option: {', '.join(Limits.model_fields)}")
    return parser


def _replicas_parser() -> argparse.ArgumentParser:
    from onerec.serving.replicas import ReplicaSettings

    parser = argparse.ArgumentParser(prog="serve.py ray", description="Serve by replicas under Ray Serve.")
    _add_listening(parser)
    parser.add_argument("--histories", help="Redis that the replicas share, such as redis://localhost:6379/0")
    parser.add_argument("--cluster", help="a running Ray, or auto: deploy there and return (default: start one here)")
    _add_overrides(parser, "KEY", f"setting or limit: {', '.join(ReplicaSettings.model_fields)}")
    return parser


def _batch_parser() -> argparse.ArgumentParser:
    from onerec.serving.batch import BatchSettings

    parser = argparse.ArgumentParser(prog="serve.py batch", description="Answer a table of users into another table.")
    parser.add_argument("--bundle", type=Path, required=True, help="folder of the bundle, such as runs/demo/bundle")
    parser.add_argument("--users", type=Path, required=True, help="Parquet file with user_id and history (item ids)")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write, one row a user")
    parser.add_argument("--histories", help="the server's SQLite file or Redis: catalogue changes, absent histories")
    parser.add_argument("--ray", type=int, metavar="WORKERS", help="answer by so many processes under Ray Data")
    parser.add_argument("--cluster", help="with --ray: a running Ray, or auto (default: start one here)")
    _add_overrides(parser, "KEY", f"setting: {', '.join(BatchSettings.model_fields)}")
    return parser


def _add_listening(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, required=True, help="folder of the bundle, such as runs/demo/bundle")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one (not with ray)")
    parser.add_argument("--logs", choices=["text", "json"], default="text", help="form of the log (default: text)")
    parser.add_argument("--traces", metavar="URL", help="OpenTelemetry collector, as http://localhost:4318/v1/traces")


def _add_overrides(parser: argparse.ArgumentParser, key: str, text: str) -> None:
    parser.add_argument("--set", action="append", default=[], metavar=f"{key}=VALUE", dest="overrides", help=text)


if __name__ == "__main__":
    sys.exit(main())
