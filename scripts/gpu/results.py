"""Figures of one part in one JSON file, whole after every figure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


class Results:
    """`path` goes on where it is there already."""

    def __init__(self, path: Path):
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"machine": machine()}

    def put(self, key: str, value: Any) -> None:
        self.found[key] = value
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.found, indent=1))
        partial.replace(self.path)


def machine() -> dict[str, Any]:
    """Card, driver, versions; in a process of its own, so that asking takes no memory of the card."""
    code = (
        "import json, torch; from asdm_cli.profiling.latency import machine; "
        "print(json.dumps(machine(torch.device('cuda' if torch.cuda.is_available() else 'cpu'))))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    card: dict[str, Any] = json.loads(told.splitlines()[-1])
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        card["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        card["driver"] = None
    return card
