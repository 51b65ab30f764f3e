"""What plain diffusers makes of UNet folders, asked in a process that never sees this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from asdm_cli.unet.flops import inputs
from tests.forking import plain

READER = """
import sys
import torch
from diffusers import UNet2DConditionModel
from pathlib import Path

for folder in map(Path, sys.argv[1:]):
    unet, info = UNet2DConditionModel.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], (folder, info)
    with torch.no_grad():
        torch.save(unet.eval()(**torch.load(folder / "inputs.pt")).sample, folder / "output.pt")
assert not any(name.startswith("asdm") for name in sys.modules)
print(len(sys.argv) - 1)
"""


def ask(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Leave beside a UNet's files what it shall be called with: random, two of a batch."""
    torch.manual_seed(1)
    arguments = inputs(config, batch=2, size=16, tokens=5, device="cpu")
    torch.save(arguments, folder / "inputs.pt")
    return arguments


def answers(folders: list[Path], cwd: Path) -> list[torch.Tensor]:
    """The outputs of all UNets, from one process; it fails where stock loading misses or ignores a tensor."""
    told = plain(READER, *folders, cwd=cwd)
    assert told.code == 0, told.err[-2000:]
    assert int(told.out.split()[-1]) == len(folders)
    return [torch.load(folder / "output.pt") for folder in folders]
