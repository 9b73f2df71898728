"""`python -m onerec.world --users 2000 --items 1000 --events 100000 --seed 0 --out FOLDER`: write a world's tables."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from onerec.errors import OneRecError
from onerec.world.settings import WorldSettings
from onerec.world.tables import write_world
from tokenizer.settings import load_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and write the tables; 2 where that cannot be done, 130 after Ctrl-C."""
    defaults = WorldSettings()
    parser = argparse.ArgumentParser(prog="python -m onerec.world", description="Write a synthetic short-video world.")
    parser.add_argument("--users", type=int, default=defaults.num_users, help="users (default: %(default)s)")
    parser.add_argument("--items", type=int, default=defaults.num_items, help="items (default: %(default)s)")
    parser.add_argument("--events", type=int, default=defaults.num_events, help="exposures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="what everything random follows from")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="any setting")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, replaced where it exists")
    options = parser.parse_args(argv)
    sizes = [
        f"num_users={options.users}",
        f"num_items={options.items}",
        f"num_events={options.events}",
        f"seed={options.seed}",
    ]
    try:
        settings = load_settings(WorldSettings, overrides=[*sizes, *options.overrides])
        manifest = write_world(settings, options.out)
    except OneRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; {options.out} is as it was before.", file=sys.stderr)
        return 130
    print(
        f"{options.out}: {settings.num_events:,} events of {settings.num_users:,} users with {settings.num_items:,} "
        f"items, content hash {manifest.content_hash[:12]}. Train on it with data.source=world data.path={options.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
