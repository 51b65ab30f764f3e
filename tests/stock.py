"""UNets that stock diffusers builds: counts of published shapes, random shapes, and what plain diffusers makes of UNet
folders, asked in a process that never sees this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from asdm_cli.unet.flops import inputs
from tests import tiny
from tests.forking import plain

LEVELS = {
    (2, 2, 2, 2): 859.52, (1, 1, 1, 1): 579.38, (1, 1, 1, 2): 659.69, (1, 1, 2, 2): 809.51, (1, 2, 2, 2): 848.79,
    (2, 1, 1, 1): 590.11, (1, 2, 1, 1): 618.66, (1, 1, 2, 1): 729.21, (2, 2, 1, 1): 629.39, (1, 2, 2, 1): 768.49,
    (2, 1, 1, 2): 670.42, (2, 2, 2, 1): 779.22,
}  # fmt: skip
"""Layers per level of SD 1.x -> millions of parameters, mid block kept; counted from hand-written stock configs."""
MID = 97_038_080
"""Parameters of the mid block: BK-SDM's Base minus its Small (arXiv 2305.15798)."""

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


def millions(layers: tuple[int, ...]) -> float:
    """Of LEVELS, and of what is not there: what a level's second pair weighs does not depend on the other levels."""
    whole, one = LEVELS[2, 2, 2, 2], LEVELS[1, 2, 2, 2]
    pair = (whole - one, one - LEVELS[1, 1, 2, 2], LEVELS[1, 1, 2, 2] - LEVELS[1, 1, 1, 2], whole - LEVELS[2, 2, 2, 1])
    return LEVELS.get(layers, whole - sum(weight for weight, count in zip(pair, layers, strict=True) if count == 1))


@st.composite
def shapes(draw: st.DrawFn, least: int = 1) -> dict[str, Any]:
    """A UNet of up to four levels, of any widths, layer counts, block types and depths that stock diffusers builds."""
    count = draw(st.integers(least, 4))

    def each(choices: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(choices, min_size=count, max_size=count))

    layers, depth = each(st.integers(1, 3)), each(st.integers(1, 2))
    return tiny.shape(
        "sd15",
        block_out_channels=each(st.sampled_from([4, 4, 8])),
        layers_per_block=draw(st.sampled_from([layers, layers[0]])),
        down_block_types=each(st.sampled_from(["DownBlock2D", "CrossAttnDownBlock2D"])),
        up_block_types=each(st.sampled_from(["UpBlock2D", "CrossAttnUpBlock2D"])),
        mid_block_type=draw(st.sampled_from([None, "UNetMidBlock2D", "UNetMidBlock2DCrossAttn"])),
        attention_head_dim=draw(st.sampled_from([1, each(st.sampled_from([1, 2]))])),
        transformer_layers_per_block=draw(st.sampled_from([1, depth])),
        use_linear_projection=draw(st.booleans()),
        sample_size=16,
    )


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
