"""Assemblies of UNets: golden counts, weight maps, stock loading, and what does not fit."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asdm_cli.errors import ModelError
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.assembly import Choice, Part, assemble, by_levels
from asdm_cli.unet.blocks import Config, preset
from asdm_cli.unet.flops import parameters
from asdm_cli.unet.shapes import tensor_shapes
from asdm_cli.unet.surgery import Graft, remove
from asdm_cli.unet.weights import WEIGHTS, copy_tensors, open_checkpoint
from tests import tiny
from tests.stock import LEVELS, MID, answers, ask, millions
from tests.stock import shapes as random_shapes

Weights = dict[str, torch.Tensor]


def whole(levels: Any, mid: str | None, ends: str = "", embeddings: str = "") -> Choice:
    return Choice(by_levels(levels, mid), ends or levels[0], embeddings or mid or levels[-1])


def tensors(assembly: Graft, donors: dict[str, Weights]) -> Weights:
    keys = assembly.key_map(donors)
    return {new: donors[donor][old] for new, (donor, old) in keys.items()}


def family(model: str, **changes: Any) -> tuple[dict[str, Config], dict[str, Weights]]:
    """Donors of one family that share no tensor: the model, and its prunings with other weights."""
    configs = {"original": tiny.shape(model, **changes)}
    configs |= {name: remove(configs["original"], name).config for name in ("base", "small")}
    return configs, {name: tiny.unet(config, seed).state_dict() for seed, (name, config) in enumerate(configs.items())}


def moved(found: Graft) -> dict[str, tuple[str, str]]:
    return {new: (donor, old) for new, (donor, old) in found.sources.items() if new != old}


def assert_fits(found: Graft, donors: dict[str, Config], at_least: int = 200) -> None:
    """The weight map gives the result's config each tensor that it promises, of its shape, and no other."""
    have = {name: tensor_shapes(config) for name, config in donors.items()}
    mapped = {new: have[name][old] for new, (name, old) in found.key_map(have).items()}
    assert mapped == tensor_shapes(found.config)
    assert len(mapped) > at_least


def by_hand(donors: dict[str, UNet2DConditionModel], levels: list[str], mid: str | None) -> UNet2DConditionModel:
    """The first donor with its blocks replaced by those of the others, as live modules."""
    unet = donors[levels[0]]
    last = len(levels) - 1
    for level, name in enumerate(levels):
        unet.down_blocks[level] = donors[name].down_blocks[level]
        unet.up_blocks[last - level] = donors[name].up_blocks[last - level]
    unet.mid_block = donors[mid].mid_block if mid else None
    outside = donors[mid or levels[-1]]
    unet.time_embedding = outside.time_embedding
    unet.add_embedding = outside.add_embedding if hasattr(outside, "add_embedding") else None
    return unet


@pytest.mark.parametrize(
    ("layers", "mid"), [*((each, True) for each in product((1, 2), repeat=4)), ((1, 2, 1, 2), False)]
)
def test_golden_counts_of_all_level_combinations(layers: tuple[int, ...], mid: bool) -> None:
    donors = {"original": preset("sd15"), "base": remove(preset("sd15"), "base").config}
    levels = ["base" if count == 1 else "original" for count in layers]
    found = assemble(donors, whole(levels, "original" if mid else None))
    count = sum(parameters(found.config).values()) + (0 if mid else MID)
    assert count / 1e6 == pytest.approx(millions(layers), abs=0.01 if layers in LEVELS else 0.03)
    assert_fits(found, donors)


@pytest.mark.parametrize("model", tiny.SHAPES)
def test_all_of_one_donor_is_that_donor(model: str) -> None:
    config = tiny.shape(model, made_elsewhere="yes", block_out_channels=tuple(tiny.SHAPES[model]["block_out_channels"]))
    state = tiny.unet(config).state_dict()
    count = len(config["block_out_channels"])
    found = assemble({"one": config, "other": remove(config, "base").config}, whole(["one"] * count, "one"))
    assert found.config == config
    made = tensors(found, {"one": state, "other": {}})
    assert made.keys() == state.keys()
    assert all(made[key] is state[key] for key in state)
    assert not moved(found)
    assert len(made) > 300


BY_LEVELS = [
    ("sd15", ["base", "base", "original", "original"], "original"),
    ("sd15", ["original", "base", "small", "original"], None),
    ("sd15", ["small", "original", "base", "base"], "base"),
    ("sd21", ["base", "base", "original", "original"], "original"),
    ("sd21", ["original", "small", "base", "original"], None),
    ("sdxl", ["base", "original", "small"], "base"),
    ("sdxl", ["original", "base", "original"], None),
]


def test_stock_diffusers_computes_what_live_blocks_of_the_donors_do(tmp_path: Path) -> None:
    """Against UNets whose blocks were exchanged by hand; written from file to file."""
    expected = []
    for number, (model, levels, mid) in enumerate(BY_LEVELS):
        configs, states = family(model)
        folder = tmp_path / str(number)
        found = assemble(configs, whole(levels, mid))
        arguments = _write(folder, configs, states, found)
        live = {name: UNet2DConditionModel.from_config(config).eval() for name, config in configs.items()}
        for name, unet in live.items():
            unet.load_state_dict(states[name])
        with torch.no_grad():
            expected.append(by_hand(live, levels, mid)(**arguments).sample)
    found_outputs = answers([tmp_path / str(number) / "made" for number in range(len(BY_LEVELS))], tmp_path)
    assert [torch.equal(*pair) for pair in zip(found_outputs, expected, strict=True)] == [True] * len(BY_LEVELS)


def test_depths_of_several_donors_and_blocks_of_a_depth(tmp_path: Path) -> None:
    """Levels of other depths give listed ones; single layers say which blocks of a depth they bring."""
    original = tiny.shape("sdxl", transformer_layers_per_block=[1, 2, 3])
    configs = {"original": original, "flat": remove(original, "*.attn.[1-2]").config}
    states = {name: tiny.unet(config, seed).state_dict() for seed, (name, config) in enumerate(configs.items())}
    levels = assemble(configs, whole(["flat", "flat", "original"], "original"))
    assert levels.config["transformer_layers_per_block"] == [1, 1, 3]
    up = tuple(("original", f"up.0.{each}") for each in ("0", "1.attn.[02]", "2", "sampler"))
    parts = [part if part.block != "up.0" else Part("up.0", "blocks.up.0", layers=up)
             for part in by_levels(["original"] * 3, "original")]  # fmt: skip
    found = assemble(configs, Choice(tuple(parts), "original", "original"))
    assert found.config["reverse_transformer_layers_per_block"] == [[3, 2, 3], 2, 1]
    for each in (levels, found):
        assert_fits(each, configs)
    arguments = _write(tmp_path, configs, states, found)
    live = UNet2DConditionModel.from_config(original).eval()
    live.load_state_dict(states["original"])
    del live.up_blocks[0].attentions[1].transformer_blocks[1]
    with torch.no_grad():
        expected = live(**arguments).sample
    assert torch.equal(answers([tmp_path / "made"], tmp_path)[0], expected)
    wrong = Part("up.0", "blocks.up.0", layers=(("original", "up.0.1.attn.7"), ("original", "up.0.0.self")))
    with pytest.raises(ModelError) as caught:
        assemble(
            configs, Choice(tuple(wrong if part.block == "up.0" else part for part in parts), "original", "original")
        )
    assert "blocks.up.0[0]: donor original: up.0.1.attn.7: this UNet has no such address" in str(caught.value)
    assert "blocks.up.0[1]: up.0.0.self is no layer; name layers (up.0.0), some of their depth" in str(caught.value)


def _write(folder: Path, configs: dict[str, Config], states: dict[str, Weights], found: Graft) -> dict[str, Any]:
    have = {}
    for name, config in configs.items():
        unet = UNet2DConditionModel.from_config(config)
        unet.load_state_dict(states[name])
        unet.save_pretrained(folder / name, max_shard_size="200KB")
        have[name] = open_checkpoint(folder / name).tensors
    made = folder / "made"
    made.mkdir(parents=True)
    copy_tensors({new: have[donor][old] for new, (donor, old) in found.key_map(have).items()}, made / WEIGHTS)
    (made / "config.json").write_text(json.dumps(found.config))
    return ask(found.config, made)


def test_levels_of_a_donor_with_fewer_go_by_resolution() -> None:
    """Tiny's up.2 is at the resolution of the original's up.3."""
    config = tiny.shape("sd15")
    donors = {"original": config, "tiny": remove(config, "tiny").config}
    found = assemble(donors, whole(["tiny", "tiny", "original", "original"], "original"))
    assert found.config["layers_per_block"] == [1, 1, 2, 2]
    assert moved(found)["up_blocks.3.resnets.1"] == ("tiny", "up_blocks.2.resnets.1")
    shallow = assemble(donors, whole(["original", "tiny", "original"], None))
    assert shallow.config["layers_per_block"] == [2, 1, 2]
    assert moved(shallow)["up_blocks.0.upsamplers.0"] == ("original", "up_blocks.1.upsamplers.0")
    assert_fits(shallow, donors)


ORIGINAL, TINY = tiny.shape("sd15"), remove(tiny.SHAPES["sd15"], "tiny").config
WIDER = tiny.shape("sd15", block_out_channels=[8, 24, 32, 32])
OTHER_START = tiny.shape("sd15", block_out_channels=[16, 16, 32, 32])
MORE_HEADS = tiny.shape("sd15", attention_head_dim=4)


def _with(block: str, *layers: tuple[str, str]) -> tuple[Part, ...]:
    """All from `o`, but for one block that is named layer by layer."""
    parts = by_levels(["o"] * 4, "o")
    return tuple(Part(block, f"blocks.{block}", layers=layers) if part.block == block else part for part in parts)


@pytest.mark.parametrize(
    ("other", "parts", "messages"),
    [
        (TINY, by_levels(["o", "o", "o", "t"], "o"), ["levels[3]: donor t has no level 3; its levels are 0..2"]),
        (TINY, by_levels(["o"] * 4, "t"), ["mid: donor t has no mid block"]),
        (TINY, by_levels(["o", "o", "t", "o"], "o"), ["levels[2]: down.2 lacks the resampler"]),
        (
            WIDER,
            by_levels(["o", "t", "o", "o"], "o"),
            ["levels[2]: in down.2 a layer made for 16 -> 32", "levels[0]: in up.3 a layer made for 24 -> 8"],
        ),
        (OTHER_START, by_levels(["t", "o", "o", "o"], "o"), ["embeddings: those of donor o", "donors.o: its layers"]),
        (MORE_HEADS, (*by_levels(["o"] * 4, "o")[:-1], Part("up.3", "blocks.up.3", "t")), ["4 heads would stand"]),
        (TINY, _with("up.3", ("o", "up.3.0"), ("t", "up.2.7"), ("o", "up.3.2")), ["blocks.up.3[1]: donor t: up.2.7"]),
        (TINY, _with("up.3", ("o", "up.3.0"), ("o", "up.3.2")), ["up.3 would have 2 layer(s) and down.0 2;"]),
        (TINY, _with("up.3", *(("o", f"up.2.{i}") for i in range(3))), ["blocks.up.3[0]: in up.3 a layer made for 48"]),
        (TINY, _with("up.2", *(("o", f"up.2.{i}") for i in range(3))), ["blocks.up.2: up.2 lacks the resampler"]),
        (
            TINY,
            _with("up.2", ("o", "up.2.sampler"), ("o", "up.2.0.attn"), ("o", "up.2.1"), ("o", "down.1.sampler")),
            ["[0]: a resampler comes", "[1]: up.2.0.attn is no layer; name layers (up.2.0)", "down.1.sampler leads"],
        ),
        (TINY, _with("mid", ("o", "mid.0"), ("o", "mid.0"), ("o", "mid.1")), ["blocks.mid: mid would keep 3 layer(s)"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_its_place(other: Config, parts: Any, messages: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        assemble({"o": ORIGINAL, "t": other}, Choice(parts, parts[0].donor, "o"))
    said = str(caught.value)
    assert all(message in said for message in messages), said


def test_all_faults_come_at_once() -> None:
    donors = {"o": ORIGINAL, "t": {**TINY, "act_fn": "gelu"}}
    with pytest.raises(ModelError) as caught:
        assemble(donors, whole(["o", "o", "o", "t"], "t"))
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["donors", "levels[3]", "mid"]


def test_random_donors_and_levels() -> None:
    """What passes has each tensor that stock diffusers promises, of its shape, and no other; the rest is ModelError."""
    seen = {"fits": 0, "moved": 0, "refused": 0}

    @settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def each(data: st.DataObject) -> None:
        config = data.draw(random_shapes(least=2))
        donors = {"whole": config, **_prunings(config)}
        if data.draw(st.integers(0, 5)) == 0:
            donors["stranger"] = data.draw(random_shapes(least=2))
        names = st.sampled_from(sorted(donors))
        levels = data.draw(st.lists(names, min_size=1, max_size=len(config["block_out_channels"])))
        try:
            found = assemble(donors, whole(levels, data.draw(names | st.none()), data.draw(names), data.draw(names)))
        except ModelError:
            seen["refused"] += 1
            return
        assert_fits(found, donors, at_least=30)
        assert Anatomy.of(found.config).addresses == found.result.addresses
        seen["fits"] += 1
        seen["moved"] += bool(moved(found))

    each()
    assert seen["fits"] >= 30, seen
    assert seen["refused"] >= 20, seen
    assert seen["moved"] >= 3, seen


def _prunings(config: Config) -> dict[str, Config]:
    found = {}
    for name in ("base", "small", "tiny"):
        try:
            found[name] = remove(config, name).config
        except ModelError:
            continue
    return found
