"""What every benchmark does with its figures: print them with the machine's, and write them where asked."""

import os
import platform
from pathlib import Path
from typing import Any

from tokenizer.artifacts import package_versions, write_json


def publish(figures: dict[str, Any], json_path: Path | None) -> None:
    """Print the figures a line each, followed by cores, load and versions; write all as JSON to `json_path`."""
    figures = {
        **figures,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "packages": package_versions(),
    }
    for key, value in figures.items():
        print(f"{key}: {value}")
    if json_path is not None:
        write_json(json_path, figures)
