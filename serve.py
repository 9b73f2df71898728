"""Serve OneRec: `python serve.py --bundle runs/demo/bundle`, then POST to /v1/recommend.

    curl http://127.0.0.1:8000/v1/recommend --json '{"history": ["50", "181"], "k": 5}'

Events posted to /v1/events make histories that requests name by user_id. Keys in the environment variable
ONEREC_API_KEYS (commas between them) close the routes under /v1 to requests without `Authorization: Bearer KEY`; the
one in ONEREC_ADMIN_KEY opens /v1/admin/bundle, which serves another bundle without a pause.
GET /metrics counts for Prometheus, /readyz says which bundle answers, /openapi.json what may be asked. Stop it with
Ctrl-C or SIGTERM.
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
    """Serve until stopped and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="serve.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="folder of the bundle, such as runs/demo/bundle")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    parser.add_argument(
        "--histories", type=Path, help="SQLite file of users' events (default: histories.sqlite beside the bundle)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="LIMIT=VALUE",
        dest="overrides",
        help=f"limit of a request: {', '.join(Limits.model_fields)}",
    )
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    try:
        limits = load_settings(Limits, overrides=arguments.overrides)
        histories = arguments.histories or arguments.bundle.parent / "histories.sqlite"
        run_server(arguments.bundle, arguments.host, arguments.port, limits, histories)
    except OneRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
