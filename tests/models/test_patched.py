"""What a model carries: asdm.json's list of patches, and the UNets beside each other. Written, read back, loaded, what
plain diffusers makes of it, and what is refused."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import asdm_cli
from asdm_cli.errors import AsdmError, ModelError
from asdm_cli.models.directory import find
from asdm_cli.models.load import load_pipeline
from asdm_cli.models.metadata import checked_patches, configs_of, patches_of, record, stamps, unet_components
from asdm_cli.patches.base import stats_of
from asdm_cli.patches.feature_cache import caches_on
from asdm_cli.patches.unet_schedule import schedule_on
from asdm_cli.unet.weights import WEIGHTS
from tests import tiny
from tests.apart import shared
from tests.carrying import every
from tests.forking import plain
from tests.patches.pipes import draw
from tests.turns import CACHE, EVERY_OTHER, PARTS, SCHEDULE, copied, patches, switching

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
def model(tiny_pipeline: Path, tiny_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its small UNet reuses features at every other call. Read-only by agreement."""
    return switching(tiny_pipeline, tiny_small, tmp_path_factory.mktemp("models") / "both", CACHE)


def test_the_layout(model: Path, tiny_pipeline: Path, tiny_small: Path) -> None:
    directory = find(str(model))
    assert list(directory.components) == [*find(str(tiny_pipeline)).components, OTHER]
    assert sorted(path.name for path in (model / OTHER).iterdir()) == ["config.json", WEIGHTS]
    for mine, theirs in ((model / "unet", tiny_pipeline / "unet"), (model / OTHER, tiny_small / "unet")):
        assert (mine / WEIGHTS).read_bytes() == (theirs / WEIGHTS).read_bytes()
    assert not shared(model, tiny_pipeline, tiny_small)
    linked = switching(tiny_pipeline, tiny_small, model.parent / "linked", link=True)
    assert shared(linked, tiny_pipeline, tiny_small) >= {f"unet/{WEIGHTS}", f"{OTHER}/{WEIGHTS}", f"vae/{WEIGHTS}"}
    assert not [name for name in shared(linked, tiny_pipeline, tiny_small) if not name.endswith(".safetensors")]
    assert (model / "model_index.json").read_text() == (tiny_pipeline / "model_index.json").read_text()
    held = json.loads((model / "asdm.json").read_text())
    assert held["patches"] == [SCHEDULE, CACHE], "as a person would write it"
    (step,) = held["history"]
    assert step["verb"] == "switch"
    sources = {name: each["source"] for name, each in step["unets"].items()}
    assert sources == {"large": tiny_pipeline.name, "small v1.5": "model"}
    assert step["unets"]["small v1.5"]["history"][-1]["verb"] == "prune"
    stamped = {name.partition("/")[0] for name, *_ in stamps(directory)}
    assert stamped >= {"unet", "unets", "asdm.json", "model_index.json"}


@pytest.mark.parametrize(
    ("caches", "changes"),
    [
        ([CACHE], {}),
        ([], {"offload": True}),
        ([], {"by": "fraction", "parts": [{"unet": "large", "until": 0.4}, {"unet": "reuse"}]}),
        ([{"kind": "feature-cache", "unet": "large", "rules": [], "cache_text": False}, CACHE], {}),
        ([{"kind": "feature-cache", **every(3, ["up.3"], order=2, axis="log-snr"), "cache_text": True}], {}),
    ],
)
def test_it_is_read_back_as_it_was_written(
    caches: list[dict[str, Any]], changes: dict[str, Any], tiny_pipeline: Path, tiny_small: Path, tmp_path: Path
) -> None:
    directory = find(str(switching(tiny_pipeline, tiny_small, tmp_path / "model", *caches, **changes)))
    found, wanted = patches_of(directory), patches(*caches, **changes)
    assert [spec.model_dump() for spec in found] == [spec.model_dump() for spec in wanted]
    assert checked_patches(directory) == found
    assert unet_components(found) == {"large": "unet", "small v1.5": OTHER}
    first, other = configs_of(directory, found).values()
    assert (first["layers_per_block"], other["layers_per_block"]) == (2, 1)


@pytest.mark.parametrize("offload", [False, True])
def test_loaded_it_draws_bit_by_bit_as_before_it_was_saved(
    offload: bool, tiny_pipeline: Path, tiny_small: Path, tmp_path: Path
) -> None:
    folder = switching(tiny_pipeline, tiny_small, tmp_path / "model", CACHE, offload=offload)
    loaded = asdm_cli.load(str(folder), "cpu")
    unet = schedule_on(loaded)
    assert unet is not None
    assert (list(unet.unets), unet.offload) == (["large", "small v1.5"], offload)
    assert list(caches_on(loaded)) == ["small v1.5"]
    pipe = asdm_cli.load(str(tiny_pipeline), "cpu")
    unets = {"large": pipe.unet, "small v1.5": str(tiny_small)}
    with asdm_cli.switch(pipe, unets, PARTS, plans={"small v1.5": EVERY_OTHER}):
        expected = draw(pipe, 6)
    assert torch.equal(draw(loaded, 6), expected)
    assert stats_of(loaded).served == ("small v1.5",) * 3 + ("large",) * 3
    asdm_cli.remove(loaded)
    assert not caches_on(loaded)
    with asdm_cli.switch(pipe, unets, PARTS):
        assert torch.equal(draw(loaded, 6), draw(pipe, 6))
    assert not torch.equal(draw(loaded, 6), expected)


def test_without_its_patches_or_its_unet(model: Path, tiny_pipeline: Path) -> None:
    bare, plainly = (load_pipeline(find(str(each)), CPU, torch.float32, False) for each in (model, tiny_pipeline))
    assert schedule_on(bare) is None
    assert torch.equal(draw(bare, 2), draw(plainly, 2))
    encoder: Any = load_pipeline(find(str(model)), CPU, torch.float32, with_unet=False)
    assert encoder.unet is None


def test_plain_diffusers_draws_as_the_first_unet_alone(model: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    told = plain(DRAW, model, tmp_path / "picture.pt", cwd=tmp_path)
    assert told.code == 0, told.err[-2000:]
    pipe = asdm_cli.load(str(tiny_pipeline), "cpu")
    assert torch.equal(torch.load(tmp_path / "picture.pt"), draw(pipe, 4, guidance_scale=7.5))


def test_a_plan_that_names_no_unet_is_for_all(model: Path, tmp_path: Path) -> None:
    """Whatever the order of the list."""
    folder = copied(model, tmp_path / "model")
    pictures, cache = [], {"kind": "feature-cache", **EVERY_OTHER}
    for held in ([cache, SCHEDULE], [SCHEDULE, cache]):
        edit(folder, lambda metadata, held=held: metadata.update(patches=held))
        pipe = asdm_cli.load(str(folder), "cpu")
        assert list(caches_on(pipe)) == ["large", "small v1.5"]
        pictures.append(draw(pipe, 6))
    assert torch.equal(*pictures)


def edit(model: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    held = json.loads((model / "asdm.json").read_text())
    change(held)
    (model / "asdm.json").write_text(json.dumps(held))


def holding(*held: Any) -> Callable[[Path], None]:
    return lambda model: edit(model, lambda metadata: metadata.update(patches=list(held)))


def scheduling(**changes: Any) -> Callable[[Path], None]:
    return holding({**SCHEDULE, **changes}, CACHE)


def in_config(**changes: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        file = model / OTHER / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def in_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        tensors = load_file(model / OTHER / WEIGHTS)
        change(tensors)
        save_file(tensors, model / OTHER / WEIGHTS)

    return damage


def old(**held: Any) -> Callable[[Path], None]:
    """As asdm 0.1 wrote it."""
    return lambda model: edit(model, lambda metadata: (metadata.pop("patches"), metadata.update(held)))


KEY = "conv_in.weight"
DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "of 0.1, both": (
        old(switch={"unets": ["large", "small v1.5"], "parts": PARTS}, inherit=EVERY_OTHER),
        r"asdm\.json: is of asdm 0\.1 \(inherit, switch\); write the model again with `asdm inherit` and `asdm switch`",
    ),
    "no word of it": (lambda model: (model / "asdm.json").unlink(), r"unets: holds UNets \(small v1\.5\) of which"),
    "no key": (lambda model: edit(model, lambda held: held.pop("patches")), r"unets: holds UNets .*says nothing"),
    "no folder": (lambda model: shutil.rmtree(model / OTHER), r"'small v1\.5' has no folder unets/small v1\.5"),
    "a folder more": (
        lambda model: shutil.copytree(model / OTHER, model / "unets" / "tiny"),
        r"unets/tiny: asdm\.json names no such UNet",
    ),
    "renamed": (
        lambda model: (model / OTHER).rename(model / "unets" / "smaller"),
        r"(?s)'small v1\.5' has no folder.*unets/smaller: asdm\.json names no such UNet",
    ),
    "unknown name": (
        scheduling(parts=[{"unet": "smal v1.5", "until": 4}, {"unet": "large"}]),
        r"patches\[0\].parts\[0\]\.unet: no UNet is called 'smal v1\.5' \(did you mean 'small v1\.5'\?\)",
    ),
    "a plan that does not fit": (
        holding(SCHEDULE, {**CACHE, "rules": [{**EVERY_OTHER["rules"][0], "nodes": "mid"}]}),
        r"patches: UNet 'small v1\.5': rules\[0\]\.nodes: .*mid",
    ),
    "no config": (lambda model: (model / OTHER / "config.json").unlink(), r"small v1\.5/config\.json: no such file"),
    "no weights": (lambda model: (model / OTHER / WEIGHTS).unlink(), r"small v1\.5: no weights"),
    "half the weights": (
        lambda model: (model / OTHER / WEIGHTS).write_bytes((model / OTHER / WEIGHTS).read_bytes()[:9999]),
        "is not a whole safetensors file",
    ),
    "other text width": (
        in_config(cross_attention_dim=8),
        r"cross_attention_dim must be the same .* large has 16, small v1\.5 has 8",
    ),
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
    asdm_cli.load(str(copied(model, tmp_path / "model")), "cpu")


def test_a_bare_unet_takes_turns_too(tiny_pipeline: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    tiny.unet(tiny.shape("sd15", layers_per_block=1), 3).save_pretrained(bare)
    record(find(str(bare)), bare, "prune")
    model = switching(tiny_pipeline, bare, tmp_path / "model")
    assert sorted(path.name for path in (model / OTHER).iterdir()) == ["config.json", WEIGHTS]
    assert draw(asdm_cli.load(str(model), "cpu"), 3).isfinite().all()


def test_another_pipeline_keeps_what_a_loaded_one_carries(model: Path) -> None:
    """`from_pipe` is how people go from text to image; the first pipeline dies then."""
    pipe: Any = load_pipeline(find(str(model)), CPU, torch.float32)
    wanted = draw(pipe, 4)
    other: Any = type(pipe).from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    del pipe
    gc.collect()
    assert schedule_on(other) is not None
    assert torch.equal(draw(other, 4), wanted)


def test_all_that_a_model_carries_is_taken_off(model: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    pipe: Any = load_pipeline(find(str(model)), CPU, torch.float32)
    with pytest.raises(ModelError, match=r"pipe\.unet\.remove\(\) several UNets"):
        pipe.save_pretrained(tmp_path / "saved")
    pipe.unet.remove()
    assert (schedule_on(pipe), caches_on(pipe)) == (None, {})
    pipe.save_pretrained(tmp_path / "saved")
    assert torch.equal(draw(pipe, 4), draw(load_pipeline(find(str(tiny_pipeline)), CPU, torch.float32), 4))
