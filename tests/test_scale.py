"""docs/scale.md: its tables are the script's, what they count is counted again, launchers take its launch lines."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from diffusers import AutoencoderKL
from torch.distributed.run import get_args_parser
from torch.utils.flop_counter import FlopCounterMode

from asdm_cli.recipe.load import load
from asdm_cli.recipe.reader import Override
from asdm_cli.unet.blocks import preset
from asdm_cli.unet.flops import macs
from asdm_cli.unet.shapes import tensor_shapes
from asdm_cli.unet.surgery import remove
from scripts import gpu_hours
from tests import pages

PAGE = pages.ROOT / "docs" / "scale.md"
LAUNCHERS: dict[str, Callable[[], object]] = {
    "torchrun": get_args_parser,
    "accelerate": lambda: launch_command_parser(),
}
LINES = [words for block in pages.blocks(PAGE) for _, words in block.commands()]
assert len(LINES) >= 5
assert {words[0] for words in LINES} == set(LAUNCHERS)


def printed(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    gpu_hours.main(options)
    return capsys.readouterr().out


def test_the_tables_are_the_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    shown = PAGE.read_text().partition("<!-- python scripts/gpu_hours.py --markdown -->\n")[2].partition("<!-- end")[0]
    assert shown == printed(capsys, "--markdown"), "put in what `python scripts/gpu_hours.py --markdown` prints"
    assert shown.count("\n| ---") == 5


@pytest.mark.parametrize("words", LINES, ids=[f"{words[0]}-{number}" for number, words in enumerate(LINES)])
def test_a_launch_line_is_taken(words: list[str]) -> None:
    """By the launcher, which would start our module, and by the recipe, whose keys are set."""
    start = words.index("-m")
    options = words[1 + (words[0] == "accelerate") :]
    told = LAUNCHERS[words[0]]().parse_args(options)  # type: ignore[attr-defined]
    assert (told.module, told.training_script) == (True, "asdm_cli")
    verb, file, *rest = words[start + 2 :]
    assert told.training_script_args == [verb, file, *rest]
    names, values = rest[::2], rest[1::2]
    assert set(names) <= {"--set", "--out"}
    settings = [v if name == "--set" else f"out={v}" for name, v in zip(names, values, strict=True)]
    assert load(pages.ROOT / file, verb, [Override.parse(each) for each in settings])


def test_what_is_counted_is_counted_so() -> None:
    sd15, sdxl = preset("sd15"), preset("sdxl")
    for name, config in {"UNet: original": sd15, "Base": remove(sd15, "base").config}.items():
        assert macs(config).total / 1e9 == pytest.approx(gpu_hours.gmacs(name), abs=0.005), name
    counted = [sum(map(prod, tensor_shapes(config).values())) / 1e6 for config in (remove(sdxl, "base").config, sdxl)]
    assert counted == pytest.approx(gpu_hours.PARAMETERS["SDXL, Base"], abs=0.005)
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            vae.encode(torch.zeros(1, 3, 512, 512))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gpu_hours.gmacs("VAE encoder"), abs=0.005)


def test_the_reckoning_by_hand() -> None:
    """Base at batch 256: (VAE + text + teacher + 4 x Base) x 2 FLOP x 12.8 M samples in 300 h."""
    per_sample = 558.33 + 6.55 + 401.64 + 4 * 261.5
    assert gpu_hours.implied_tflops(256) == pytest.approx(2 * per_sample * 12.8e6 / (300 * 3600) / 1e3)
    told = gpu_hours.options(["--gpus", "1", "4", "--scaling", "0.8"])
    rows = {cells[0]: cells[1:] for cells in gpu_hours.training(told).cells}
    assert rows["BK-SDM's script, base"] == ("300.0 h", "93.8 h")
    assert rows["`asdm distill`, base"][0] == f"{300 * (401.64 + 4 * 261.5) / per_sample:.1f} h"
    alone, others = gpu_hours.memory(told).cells[0][2:4]
    assert (alone, others) == (
        f"{(579.38 * 20 + 859.52 * 2) / 1e3:.1f} GB",
        f"{(579.38 * 24 + 859.52 * 2) / 1e3:.1f} GB",
    )
