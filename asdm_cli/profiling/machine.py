"""The part of a figure's protocol card that tells where and with what it was measured."""

from __future__ import annotations

import os
import platform
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from asdm_cli.records import Card

PACKAGES = ("asdm-cli", "torch", "diffusers", "transformers", "torchmetrics")
CPU_INFO = Path("/proc/cpuinfo")


def machine(device: torch.device) -> Card:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:  # as the maker calls it, where the system tells
        lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else platform.processor() or platform.machine()
    return {
        "device": f"{device}: {name}",
        "cpu_cores": os.cpu_count() or 1,
        "torch_threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "versions": versions(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def versions() -> list[str]:
    """`name version` of the packages that figures depend on."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # run from a checkout that was not installed
            found.append(f"{package} (not installed)")
    return found
