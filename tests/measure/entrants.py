"""Tiny entrants for the tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from asdm_cli.measure.contestants import Entrant, Protocol

from asdm_cli.models.directory import find
from asdm_cli.unet import flops
from tests import tiny


def protocol(**changes: Any) -> Protocol:
    settings: dict[str, Any] = {
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "batches": (1, 2),
        "repeats": 3,
        "warmups": 1,
        "guidance": 3.0,
        "sampler": "own",
        "size": None,
    }
    return Protocol(**{**settings, **changes})


def bare(name: str = "bare", shape: str = "sd15", **changes: Any) -> Entrant:
    """Random weights, UNet calls only."""
    return _entrant(name, tiny.shape(shape), **changes)


def drawing(folder: Path, name: str = "drawing", **changes: Any) -> Entrant:
    """The tiny pipeline."""
    return _entrant(name, tiny.shape("sd15"), directory=find(str(folder)), draws=True, **changes)


def _entrant(name: str, config: dict[str, Any], **changes: Any) -> Entrant:
    settings: dict[str, Any] = {
        "name": name,
        "source": "a test",
        "directory": None,
        "config": config,
        "parameters": flops.parameters(config),
        "macs": flops.macs(config, tokens=tiny.TOKENS),
        "latent": (4, 8, 8),
        "tokens": tiny.TOKENS,
        "steps": 4,
        "draws": False,
    }
    settings |= changes
    return Entrant(**{"calls": settings["steps"], **settings})
