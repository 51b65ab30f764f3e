"""Every pruned checkpoint is a stock one: plain diffusers loads it and computes what was meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from asdm_cli.errors import ModelError
from asdm_cli.unet.blocks import read_blocks
from asdm_cli.unet.surgery import apply, remove
from asdm_cli.unet.weights import WEIGHTS, copy_tensors, open_checkpoint
from tests import tiny
from tests.stock import answers, ask, shapes

Cut = Callable[[UNet2DConditionModel], None]
UNEVEN = {
    "transformer_layers_per_block": [1, [2, 1], [3, 2]],
    "reverse_transformer_layers_per_block": [[3, 1, 2], [2, 3, 1], 1],
}


def _prune_files(folder: Path, config: dict[str, Any], donor: UNet2DConditionModel, patterns: Any) -> torch.Tensor:
    """Write the pruned checkpoint below `folder`, from file to file; the output of the same surgery in memory."""
    donor.save_pretrained(folder / "donor", max_shard_size="200KB")
    surgery = remove(config, patterns)
    have = open_checkpoint(folder / "donor").tensors
    pruned = folder / "pruned"
    pruned.mkdir()
    copy_tensors({new: have[old] for new, old in surgery.key_map(have).items()}, pruned / WEIGHTS)
    (pruned / "config.json").write_text(json.dumps(surgery.config))
    arguments = ask(surgery.config, pruned)
    stock, tensors = apply(config, donor.state_dict(), patterns)
    unet = UNet2DConditionModel.from_config(stock).eval()
    unet.load_state_dict(tensors)
    with torch.no_grad():
        return unet(**arguments).sample


class Through(nn.Module):
    """Stands where a transformer was and hands its input on."""

    def forward(self, hidden_states: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        return (hidden_states,)


def _base(unet: UNet2DConditionModel) -> None:
    """BK-SDM's base by hand: the second pair of every down block, the middle pair of every up block."""
    for block in (*unet.down_blocks, *unet.up_blocks):
        del block.resnets[1]
        if hasattr(block, "attentions"):
            del block.attentions[1]


def _small(unet: UNet2DConditionModel) -> None:
    _base(unet)
    unet.mid_block = None


def _tiny(unet: UNet2DConditionModel) -> None:
    _small(unet)
    del unet.down_blocks[-1]
    unet.down_blocks[-1].downsamplers = None
    del unet.up_blocks[0]


def _plain_level_1(unet: UNet2DConditionModel) -> None:
    for block in (unet.down_blocks[1], unet.up_blocks[-2]):
        for i in range(len(block.attentions)):
            block.attentions[i] = Through()


def _half_mid(unet: UNet2DConditionModel) -> None:
    del unet.mid_block.resnets[0]
    del unet.mid_block.attentions[0]


def _level_1_of_four(unet: UNet2DConditionModel) -> None:
    del unet.down_blocks[1]
    del unet.up_blocks[2]


def _depth_of(*kept: tuple[str, int, range | list[int]]) -> Cut:
    def cut(unet: UNet2DConditionModel) -> None:
        for block, layer, stay in kept:
            inner = unet.get_submodule(f"{block}.attentions.{layer}").transformer_blocks
            for number in reversed(range(len(inner))):
                if number not in stay:
                    del inner[number]

    return cut


def _plain_mid(unet: UNet2DConditionModel) -> None:
    del unet.mid_block.resnets[1], unet.mid_block.attentions[0]


def _first(layers: dict[str, tuple[int, ...]]) -> Cut:
    """By hand, the first blocks of the depth of each layer that is left."""
    return _depth_of(*((block, layer, range(depth)) for block, depths in layers.items()
                       for layer, depth in enumerate(depths)))  # fmt: skip


def _all(*cuts: Cut) -> Cut:
    def cut(unet: UNet2DConditionModel) -> None:
        for each in cuts:
            each(unet)

    return cut


XL = {"transformer_layers_per_block": [1, 2, 10]}
STUDENTS = {
    "ssd-1b": _all(_plain_mid, _first({"down_blocks.1": (2, 2), "down_blocks.2": (4, 4), "up_blocks.0": (4, 4, 10),
                                       "up_blocks.1": (2, 1, 1)})),
    "vega": _all(_plain_mid, _first({"down_blocks.1": (1, 1), "down_blocks.2": (2, 2), "up_blocks.0": (2, 2, 2),
                                     "up_blocks.1": (1, 1, 1)})),
    "koala-1b": _all(_base, _first({"down_blocks.2": (6,), "mid_block": (6,), "up_blocks.0": (6, 6)})),
    "koala-700m": _all(_small, _first({"down_blocks.2": (5,), "up_blocks.0": (5, 5)})),
}  # fmt: skip
EQUAL = {"block_out_channels": [8, 8, 8, 16]}
# fmt: off
BY_HAND: list[tuple[str, dict[str, Any], Any, Cut]] = [
    *((model, {}, name, cut) for model in tiny.SHAPES for name, cut in (("base", _base), ("small", _small))),
    *((model, {}, "tiny", _tiny) for model in ("sd15", "sd21")),
    ("sdxl", UNEVEN, "small", _small),
    *((model, {}, "mid.0", _half_mid) for model in tiny.SHAPES),
    ("sd15", {}, ["down.1.*.attn", "up.2.*.attn"], _plain_level_1),
    ("sdxl", {}, ["down.1.*.attn", "up.1.*.attn"], _plain_level_1),
    ("sd15", EQUAL, "level.1", _level_1_of_four),
    *(("sdxl", XL, name, cut) for name, cut in STUDENTS.items()),
    ("sdxl", {}, "up.0.1.attn.[02]", _depth_of(("up_blocks.0", 1, [1]))),
    ("sdxl", UNEVEN, ["down.2.1.attn.0", "up.1.1.attn.1"],
     _depth_of(("down_blocks.2", 1, [1]), ("up_blocks.1", 1, [0, 2]))),
    ("sd15", {}, ["down.0.1.attn.0", "mid.0.attn.0", "up.2.0.attn.*"],
     _depth_of(("down_blocks.0", 1, []), ("mid_block", 0, []), ("up_blocks.2", 0, []))),
]
"""What is removed by its address, and by hand from the donor's own modules."""
# fmt: on


def test_stock_diffusers_computes_what_is_left_of_the_donor(tmp_path: Path) -> None:
    """Against the donor itself, with the same modules taken out of it by hand."""
    expected = []
    for number, (model, changes, patterns, cut) in enumerate(BY_HAND):
        config = tiny.shape(model, **changes)
        donor = tiny.unet(config, seed=number)
        in_memory = _prune_files(tmp_path / str(number), config, donor, patterns)
        cut(donor)
        with torch.no_grad():
            by_hand = donor(**torch.load(tmp_path / str(number) / "pruned" / "inputs.pt")).sample
        assert torch.equal(in_memory, by_hand), (model, patterns)
        expected.append(by_hand)
    found = answers([tmp_path / str(number) / "pruned" for number in range(len(BY_HAND))], tmp_path)
    assert [torch.equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * len(BY_HAND)


def _removals(config: dict[str, Any]) -> st.SearchStrategy[list[str]]:
    """Per level as many layers of the down block as of the up block, any transformers of blocks, parts of mid."""
    blocks = {block.address: block for block in read_blocks(config)}
    last = max(block.level for block in blocks.values())
    parts = [st.sampled_from([[], ["mid"], ["mid.0"], ["mid.0.attn", "mid.1"]])] if "mid" in blocks else []
    for level in range(last + 1):
        down, up = blocks[f"down.{level}"], blocks[f"up.{last - level}"]
        parts.append(_layers(down.address, up.address, len(down.layers)))
        parts += [st.sampled_from([[], [f"{b.address}.*.attn"]]) for b in (down, up) if b.layers[0].transformer]
    inner = [f"{b}.{i}.attn.{k}" for b, block in blocks.items() for i, layer in enumerate(block.layers)
             for k in range(layer.transformer.depth if layer.transformer else 0)]  # fmt: skip
    parts += [st.lists(st.sampled_from(inner), max_size=3, unique=True)] if inner else []
    deepest = ["up.0", f"down.{last}", f"down.{last - 1}.sampler"]
    mixed = st.tuples(*parts).map(lambda sets: list(chain.from_iterable(sets)))
    return st.one_of(mixed, st.sampled_from([deepest, ["base"], ["small"]]))


@st.composite
def _layers(draw: st.DrawFn, down: str, up: str, count: int) -> list[str]:
    gone = draw(st.integers(0, count - 1))
    names = []
    for block, layers in ((down, count), (up, count + 1)):
        names += [f"{block}.{i}" for i in draw(st.permutations(range(layers)))[:gone]]
    return names


def test_random_shapes_and_removals(tmp_path: Path) -> None:
    """What surgery lets pass, stock diffusers loads whole and computes bit for bit; what it refuses is a ModelError."""
    expected: dict[Path, torch.Tensor] = {}
    refused: list[list[str]] = []

    @settings(max_examples=70, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        config = data.draw(shapes())
        patterns = data.draw(_removals(config))
        try:
            remove(config, patterns)
        except ModelError:
            refused.append(patterns)
            return
        folder = tmp_path / str(len(expected))
        expected[folder / "pruned"] = _prune_files(folder, config, tiny.unet(config, len(expected)), patterns)

    collect()
    found = answers(list(expected), tmp_path)
    assert [torch.equal(*pair) for pair in zip(found, expected.values(), strict=True)] == [True] * len(expected)
    assert len(found) >= 30
    assert len(refused) >= 5
