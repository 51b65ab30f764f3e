"""Figures of one part in one JSON file, whole after every figure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

KNOWN = "ASDM_GPU_MACHINE"
"""What was told of the machine, once for all parts."""


class Results:
    """`path` goes on where it is there already, of the same machine."""

    def __init__(self, path: Path):
        self.path, mine = path, _known()
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if {**self.found.get("machine", {}), "date": ""} != {**mine, "date": ""}:
            self.found = {"machine": mine}

    def put(self, key: str, value: Any) -> None:
        self.found[key] = value
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.found, indent=1))
        partial.replace(self.path)


def _known() -> dict[str, Any]:
    if KNOWN not in os.environ:
        os.environ[KNOWN] = json.dumps(machine())
    card: dict[str, Any] = json.loads(os.environ[KNOWN])
    return card


def machine() -> dict[str, Any]:
    """Card, driver, versions, date; in a process of its own, so that asking takes no memory of the card; where it
    fails, its errors show."""
    code = (
        "import json, torch; from asdm_cli.profiling.latency import measured_on; "
        "print(json.dumps(measured_on(torch.device('cuda' if torch.cuda.is_available() else 'cpu'))))"
    )
    told = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    card: dict[str, Any] = json.loads(told.stdout.splitlines()[-1]) if told.returncode == 0 else {"device": "unknown"}
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        card["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        card["driver"] = None
    return card
