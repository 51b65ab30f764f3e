"""Directories of several UNets: written, read back, what plain diffusers makes of them, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from asdm_cli.models.switched import checked_switch, member, one_unet, read_switch, run_time_plans, write_switched
from asdm_cli.switching.pipelines import switched
from safetensors.torch import load_file, save_file
from tests.inheritance.pipes import draw

import asdm_cli
from asdm_cli.errors import AsdmError, ModelError
from asdm_cli.models.directory import find
from asdm_cli.models.load import load_pipeline
from asdm_cli.models.metadata import record, stamps
from asdm_cli.unet.weights import WEIGHTS
from tests import tiny
from tests.apart import shared
from tests.forking import plain
from tests.turns import EVERY_OTHER, SWITCH, copied, pruned, switch, switching

CPU = torch.device("cpu")
OTHER = "unets/small v1.5"
DRAW = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
noise = torch.Generator().manual_seed(0)
picture = pipe("a red fox", num_inference_steps=4, generator=[noise], output_type="latent", height=32, width=32).images
assert not any(name.startswith("asdm") for name in sys.modules)
torch.save(picture, sys.argv[2])
"""


@pytest.fixture(scope="module")
def small(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pruned(tiny_pipeline, tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def model(tiny_pipeline: Path, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only by agreement."""
    return switching(tiny_pipeline, small, tmp_path_factory.mktemp("models") / "both")


def test_the_layout(model: Path, tiny_pipeline: Path, small: Path) -> None:
    directory = find(str(model))
    assert list(directory.components) == [*find(str(tiny_pipeline)).components, OTHER]
    assert sorted(path.name for path in (model / OTHER).iterdir()) == ["config.json", WEIGHTS]
    for mine, theirs in ((model / "unet", tiny_pipeline / "unet"), (model / OTHER, small / "unet")):
        assert (mine / WEIGHTS).read_bytes() == (theirs / WEIGHTS).read_bytes()
    assert not shared(model, tiny_pipeline, small)
    linked = model.parent / "linked"
    write_switched(find(str(tiny_pipeline)), {"small v1.5": find(str(small))}, switch(), linked, link=True)
    assert shared(linked, tiny_pipeline, small) >= {f"unet/{WEIGHTS}", f"{OTHER}/{WEIGHTS}", f"vae/{WEIGHTS}"}
    assert not [name for name in shared(linked, tiny_pipeline, small) if not name.endswith(".safetensors")]
    assert (model / "model_index.json").read_text() == (tiny_pipeline / "model_index.json").read_text()
    held = json.loads((model / "asdm.json").read_text())
    assert held["switch"]["unets"] == ["large", "small v1.5"]
    (step,) = held["history"]
    assert step["verb"] == "switch"
    assert [(name, each["source"]) for name, each in step["unets"].items()] == [
        ("large", tiny_pipeline.name),
        ("small v1.5", "model"),
    ]
    assert step["unets"]["small v1.5"]["history"][-1]["verb"] == "prune"
    assert {name.partition("/")[0] for name, *_ in stamps(directory)} >= {"unet", "unets", "asdm.json"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"plans": {}, "idle": "cpu"},
        {"by": "fraction", "parts": [{"unet": "large", "until": 0.4}, {"unet": "reuse"}]},
        {"plans": {"large": {"rules": [], "text_once": False}, "small v1.5": EVERY_OTHER}},
    ],
)
def test_it_is_read_back_as_it_was_written(
    changes: dict[str, Any], tiny_pipeline: Path, small: Path, tmp_path: Path
) -> None:
    folder = switching(tiny_pipeline, small, tmp_path / "model", **changes)
    directory = find(str(folder))
    assert read_switch(directory) == checked_switch(directory) == switch(**changes)
    plans = run_time_plans(directory, read_switch(directory))
    assert {name: nodes.plan for name, nodes in plans.items()} == switch(**changes).plans
    assert [len(each.anatomy.addresses) for each in plans.values()] == sorted(
        (len(each.anatomy.addresses) for each in plans.values()), reverse=True
    )


def test_models_of_one_unet_have_no_switch(tiny_pipeline: Path, small: Path, tmp_path: Path) -> None:
    for path in (tiny_pipeline, small, small / "unet"):
        directory = find(str(path))
        assert read_switch(directory) is None
        assert checked_switch(directory) is None
        assert one_unet(directory) is directory
        assert run_time_plans(directory, None) == {}
    record(find(str(small)), tmp_path, "prune")
    assert "switch" not in json.loads((tmp_path / "asdm.json").read_text())


def test_a_switch_is_not_handed_on(model: Path, tmp_path: Path) -> None:
    record(find(str(model)), tmp_path, "prune")
    assert list(json.loads((tmp_path / "asdm.json").read_text())) == ["history"]


@pytest.mark.parametrize("idle", ["stay", "cpu"])
def test_loaded_it_draws_bit_by_bit_as_before_it_was_saved(
    idle: str, tiny_pipeline: Path, small: Path, tmp_path: Path
) -> None:
    folder = switching(tiny_pipeline, small, tmp_path / "model", idle=idle)
    loaded = asdm_cli.load(str(folder), "cpu")
    unet = switched(loaded)
    assert unet is not None
    assert list(unet.unets) == ["large", "small v1.5"]
    assert unet.idle == idle
    assert list(unet.engines) == ["small v1.5"]
    pipe = asdm_cli.load(str(tiny_pipeline), "cpu")
    unets = {"large": pipe.unet, "small v1.5": str(small)}
    with asdm_cli.switch(pipe, unets, SWITCH["parts"], plans=SWITCH["plans"]):
        expected = draw(pipe, 6)
    assert torch.equal(draw(loaded, 6), expected)
    assert unet.last_served == ("small v1.5",) * 3 + ("large",) * 3
    plain = load_pipeline(find(str(folder)), CPU, torch.float32, with_plan=False)
    again = switched(plain)
    assert again is not None
    assert not again.engines
    with asdm_cli.switch(pipe, unets, SWITCH["parts"]):
        assert torch.equal(draw(plain, 6), draw(pipe, 6))
    assert not torch.equal(draw(plain, 6), expected)


def test_without_its_unets_it_only_encodes(model: Path) -> None:
    pipe: Any = load_pipeline(find(str(model)), CPU, torch.float32, with_unet=False)
    assert pipe.unet is None
    assert switched(pipe) is None


def test_each_unet_is_a_model_of_its_own(model: Path, small: Path) -> None:
    directory = find(str(model))
    other = member(directory, switch(), "small v1.5")
    assert other.config("unet") == find(str(small)).config("unet")
    assert member(directory, switch(), "large").component("unet") == model / "unet"


def test_plain_diffusers_draws_as_the_first_unet_alone(model: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    file = tmp_path / "picture.pt"
    told = plain(DRAW, model, file, cwd=tmp_path)
    assert told.code == 0, told.err[-2000:]
    pipe = asdm_cli.load(str(tiny_pipeline), "cpu")
    assert torch.equal(torch.load(file), draw(pipe, 4, guidance_scale=7.5))


def test_a_plan_for_every_unet_stands_beside_the_switch(model: Path, tmp_path: Path) -> None:
    folder = copied(model, tmp_path / "model")
    edit(folder, lambda held: (held["switch"].update(plans={}), held.update(inherit=EVERY_OTHER)))
    directory = find(str(folder))
    assert list(run_time_plans(directory, checked_switch(directory))) == ["large", "small v1.5"]
    pipe = asdm_cli.load(str(folder), "cpu")
    unet = switched(pipe)
    assert unet is not None
    assert list(unet.engines) == ["large", "small v1.5"]


def edit(model: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    held = json.loads((model / "asdm.json").read_text())
    change(held)
    (model / "asdm.json").write_text(json.dumps(held))


def in_switch(**changes: Any) -> Callable[[Path], None]:
    return lambda model: edit(model, lambda held: held["switch"].update(changes))


def in_config(**changes: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        file = model / OTHER / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def in_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        file = model / OTHER / WEIGHTS
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return damage


KEY = "conv_in.weight"
DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no word of it": (lambda model: (model / "asdm.json").unlink(), r"unets: holds UNets \(small v1\.5\) of which"),
    "no key": (lambda model: edit(model, lambda held: held.pop("switch")), r"unets: holds UNets .*says nothing"),
    "no JSON": (lambda model: (model / "asdm.json").write_text("{"), r"asdm\.json: cannot be read as JSON"),
    "a number": (lambda model: edit(model, lambda held: held.update(switch=3)), "switch: must be a mapping of keys"),
    "no folder": (lambda model: shutil.rmtree(model / OTHER), r"switch: 'small v1\.5' has no folder unets/small v1\.5"),
    "no folders": (lambda model: shutil.rmtree(model / "unets"), "has no folder unets/small"),
    "a folder more": (
        lambda model: shutil.copytree(model / OTHER, model / "unets" / "tiny"),
        "unets/tiny: switch in asdm.json names no such UNet",
    ),
    "renamed": (
        lambda model: (model / OTHER).rename(model / "unets" / "smaller"),
        r"(?s)'small v1\.5' has no folder.*unets/smaller: switch in asdm\.json names no such UNet",
    ),
    "unknown name": (
        in_switch(parts=[{"unet": "smal v1.5", "until": 4}, {"unet": "large"}]),
        r"switch.parts\[0\]\.unet: no UNet is called 'smal v1\.5' \(did you mean 'small v1\.5'\?\)",
    ),
    "out of order": (
        in_switch(parts=[{"unet": "large", "until": 4}, {"unet": "large", "until": 9}, {"unet": "large"}]),
        r"switch.parts\[1\]\.until: timesteps fall from part to part",
    ),
    "no UNets": (in_switch(unets=[]), "switch.unets: needs 1 or more entries"),
    "idle nowhere": (in_switch(idle="disk"), "switch.idle: must be one of 'stay', 'cpu'"),
    "unknown key": (in_switch(untill=4), "switch.untill: unknown key"),
    "a stranger's plan": (in_switch(plans={"tiny": EVERY_OTHER}), "switch.plans.tiny: no UNet is called 'tiny'"),
    "a plan that does not fit": (
        in_switch(plans={"small v1.5": {"rules": [{**EVERY_OTHER["rules"][0], "nodes": "mid"}]}}),
        r"switch: plans: UNet 'small v1\.5': rules\[0\]\.nodes: .*mid",
    ),
    "plans twice": (
        lambda model: edit(model, lambda held: held.update(inherit=EVERY_OTHER)),
        "holds both `inherit`, for every UNet, and `switch: plans`",
    ),
    "no config": (lambda model: (model / OTHER / "config.json").unlink(), r"small v1\.5/config\.json: no such file"),
    "no weights": (lambda model: (model / OTHER / WEIGHTS).unlink(), r"small v1\.5: no weights"),
    "half the weights": (
        lambda model: (model / OTHER / WEIGHTS).write_bytes((model / OTHER / WEIGHTS).read_bytes()[:9999]),
        "is not a whole safetensors file",
    ),
    "other text width": (
        in_config(cross_attention_dim=8),
        r"switch: cross_attention_dim must be the same .* large has 16, small v1\.5 has 8",
    ),
    "other latents": (in_config(in_channels=9), r"switch: in_channels must .* large has 4, small v1\.5 has 9"),
    "the other's config": (
        lambda model: shutil.copyfile(model / "unet" / "config.json", model / OTHER / "config.json"),
        r"small v1\.5: the weights lack \S+, which config\.json asks for",
    ),
    "the other's weights": (
        lambda model: shutil.copyfile(model / "unet" / WEIGHTS, model / OTHER / WEIGHTS),
        rf"{OTHER}/{WEIGHTS}: ",
    ),
    "a tensor too few": (in_weights(lambda held: held.pop(KEY)), f"lack {KEY}, which config.json asks for"),
    "a tensor of another shape": (
        in_weights(lambda held: held.update({KEY: torch.zeros(8, 4, 1, 1)})),
        rf"{KEY} has the shape \[8, 4, 1, 1\] where config\.json asks for \[8, 4, 3, 3\]",
    ),
    "a link that leaves": (
        lambda model: ((model / OTHER / WEIGHTS).unlink(), (model / OTHER / WEIGHTS).symlink_to("/etc/hostname")),
        "is a link that leaves",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_and_mixed_up_directories_are_refused(name: str, model: Path, tmp_path: Path) -> None:
    damage, message = DAMAGED[name]
    damage(copied(model, tmp_path / "model"))
    with pytest.raises(AsdmError, match=message) as caught:
        asdm_cli.load(str(tmp_path / "model"), "cpu")
    assert caught.value.exit_code == 2
    assert str(tmp_path / "model") in str(caught.value)


def test_the_copy_that_is_damaged_was_whole(model: Path, tmp_path: Path) -> None:
    assert len(DAMAGED) >= 25
    asdm_cli.load(str(copied(model, tmp_path / "model")), "cpu")


def test_several_cannot_be_put_together_again(model: Path, tiny_pipeline: Path, small: Path, tmp_path: Path) -> None:
    message = r"holds several UNets that take turns \(large, small v1\.5\); do this to one model each, then switch"
    for first, other in ((model, small), (tiny_pipeline, model)):
        with pytest.raises(ModelError, match=message):
            switching(first, other, tmp_path / "model")
    pipe: Any = asdm_cli.load(str(tiny_pipeline), "cpu")
    with pytest.raises(ModelError, match=message):
        asdm_cli.switch(pipe, {"a": pipe.unet, "b": str(model)}, [{"unet": "a"}])


def test_a_bare_unet_takes_turns_too(tiny_pipeline: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    tiny.unet(tiny.shape("sd15", layers_per_block=1), 3).save_pretrained(bare)
    record(find(str(bare)), bare, "prune")
    model = switching(tiny_pipeline, bare, tmp_path / "model", plans={})
    assert sorted(path.name for path in (model / OTHER).iterdir()) == ["config.json", WEIGHTS]
    assert draw(asdm_cli.load(str(model), "cpu"), 3).isfinite().all()
