"""Training state on disk: every checkpoint is whole or absent, and only the newest few are kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

_PREFIX = "step-"


def save(folder: Path, step: int, state: dict, keep: int = 2) -> Path:
    """Write `state` as `folder/step-N/state.pt`; a kill at any moment leaves the previous one usable."""
    target = folder / f"{_PREFIX}{step:08d}"
    partial = folder / f".partial-{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with (partial / "state.pt").open("wb") as handle:
        torch.save(state, handle)
        handle.flush()
        os.fsync(handle.fileno())
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def latest(folder: Path) -> dict | None:
    """The newest state, loaded on the CPU without running any code from the file; None if there is none."""
    found = _all(folder)
    if not found:
        return None
    return torch.load(found[-1] / "state.pt", map_location="cpu", weights_only=True)


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*"))
