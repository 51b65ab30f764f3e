"""The verb condconv-expand as typed: expanded, learned with, pruned, assembled, drawn, folded; and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import asdm_cli
from asdm_cli.models.load import load_unet
from asdm_cli.models.source import find
from asdm_cli.unet.cost import inputs
from asdm_cli.unet.expert_unet import expert_layers
from tests.typed import Said, asdm

CPU = torch.device("cpu")
SIGMOID = "{weights: sigmoid, start: noise, donor: %s}"


@pytest.fixture(scope="module")
def base(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline without the layers of Base."""
    folder = tmp_path_factory.mktemp("base")
    recipe = folder / "prune.yaml"
    recipe.write_text(f"verb: prune\nmodel: {tiny_pipeline}\nremove: base\nout: {folder / 'run'}\n")
    assert asdm("prune", recipe).code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def expanded(base: Path, tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With three experts by features and time: nothing else of it is equal to its neighbours."""
    folder = tmp_path_factory.mktemp("expanded")
    said = expand(folder, base, f"{{experts: 3, donor: {tiny_pipeline}, router: both, start: noise, noise: 0.5}}")
    assert said.code == 0, said.text
    unet = folder / "run/model/unet"
    names = sorted(unet.glob("*.safetensors"))
    for name in names:
        tensors = load_file(name)
        stirred = {k: v + 0.1 * torch.randn_like(v) if ".router." in k else v for k, v in tensors.items()}
        save_file(stirred, name, {"format": "pt"})
    return folder / "run"


def expand(folder: Path, model: Path, what: str, *more: str) -> Said:
    recipe = folder / "expand.yaml"
    recipe.write_text(f"verb: condconv-expand\nmodel: {model}\nexpand: {what}\nout: {folder / 'run'}\n")
    return asdm("condconv-expand", recipe, "--overwrite", *more)


def arguments(directory: Path, rows: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    torch.manual_seed(3)
    return {**inputs(find(str(directory)).config("unet"), rows, 8, 5, "cpu", dtype), "timestep": 300}


@torch.no_grad()
def answer(directory: Path, rows: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """From memory of its own: diffusers leaves weights where they lie in the file, and where they lie shows in the last
    bit of a product."""
    unet = load_unet(find(str(directory)), CPU, dtype)
    for parameter in unet.parameters():
        parameter.data = parameter.data.clone()
    sample: Tensor = unet(**arguments(directory, rows, dtype)).sample
    return sample


def picture(directory: Path) -> Any:
    pipe: Any = asdm_cli.load(str(directory), "cpu")
    return torch.tensor(
        pipe("a fox", num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np").images
    )


@pytest.mark.parametrize("router", ["features", "time", "both"])
@pytest.mark.parametrize("start", ["copies", "noise", "inherited"])
@pytest.mark.parametrize("weights", ["softmax", "normalised-sigmoid", "sigmoid"])
def test_begins_as_what_it_was(
    base: Path, tiny_pipeline: Path, tmp_path: Path, router: str, start: str, weights: str
) -> None:
    what = f"{{experts: 4, donor: {tiny_pipeline}, router: {router}, start: {start}, weights: {weights}}}"
    said = expand(tmp_path, base, what)
    if (start, weights) == ("copies", "sigmoid"):
        assert said.code == 2
        assert "expand.start: equal copies under 'sigmoid' would all learn the same" in said.text
        return
    assert said.code == 0, said.text
    unet = load_unet(find(str(tmp_path / "run")), CPU, torch.float32)
    assert len(expert_layers(unet)) == 24
    for rows in (1, 2):
        got, wanted = answer(tmp_path / "run", rows), answer(base, rows)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
        if start == "copies" and (rows == 1 or router == "time"):
            assert torch.equal(got, wanted)


def test_inherits_the_removed_kernels(base: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    what = f"{{experts: 3, donor: {tiny_pipeline}, start: inherited}}"
    assert expand(tmp_path, base, what).code == 0
    unet, donor, own = (
        load_unet(find(str(each)), CPU, torch.float32) for each in (tmp_path / "run", tiny_pipeline, base)
    )
    pairs = {
        "down_blocks.0.resnets.0.conv2": "down_blocks.0.resnets.1.conv2",
        "up_blocks.1.resnets.1.conv2": "up_blocks.1.resnets.1.conv2",
    }
    for name, sibling in pairs.items():
        kept, taken, filled = unet.get_submodule(name).weight.chunk(3)
        assert torch.equal(kept, own.get_submodule(name).weight)
        assert torch.equal(taken, donor.get_submodule(sibling).weight)
        assert torch.equal(filled, kept)
    unfit = unet.get_submodule("up_blocks.2.resnets.1.conv1").weight.chunk(3)  # the removed one is wider
    assert torch.equal(unfit[0], unfit[1])


def test_says_what_it_costs(base: Path, tmp_path: Path) -> None:
    said = expand(tmp_path, base, "{experts: 2, at: [down.0], router: features}", "--dry-run")
    assert said.code == 0
    assert "2 convolutions of 2 experts" in said.text
    assert not (tmp_path / "run").exists()
    added = sum(out * inp * 9 + out + 2 * inp + 2 for inp, out in ((8, 8), (8, 8)))
    before, after = (
        sum(p.numel() for p in unet.parameters())
        for unet in _unets(base, tmp_path, "{experts: 2, at: [down.0], router: features}")
    )
    assert after - before == added


def _unets(base: Path, folder: Path, what: str) -> list[Any]:
    assert expand(folder, base, what).code == 0
    return [load_unet(find(str(each)), CPU, torch.float32) for each in (base, folder / "run")]


def test_loads_as_it_was_saved(expanded: Path, tmp_path: Path) -> None:
    pipe: Any = asdm_cli.load(str(expanded), "cpu")
    pipe.save_pretrained(tmp_path / "again")
    again: Any = asdm_cli.load(str(tmp_path / "again"), "cpu")
    assert type(again.unet).__name__ == "ExpertUNet"
    with torch.no_grad():
        mine, theirs = (each.unet(**arguments(expanded)).sample for each in (pipe, again))
    assert torch.equal(mine, theirs)
    assert torch.equal(mine, answer(expanded))
    state = load_unet(find(str(expanded)), CPU, torch.bfloat16).state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    torch.testing.assert_close(answer(expanded, dtype=torch.bfloat16).float(), mine, atol=0.1, rtol=0.1)


STOCK = """
import sys
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
for kind, inner in ((StableDiffusionPipeline, ""), (UNet2DConditionModel, "/unet")):
    try:
        kind.from_pretrained(sys.argv[1] + inner)
    except Exception as error:
        print("refused:", type(error).__name__, str(error).splitlines()[0])
assert not any(name.startswith("asdm") for name in sys.modules)
"""


def test_plain_diffusers_refuses_it(expanded: Path, tmp_path: Path) -> None:
    """Never other weights without a word."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", STOCK, str(expanded / "model")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("refused:") == 2, done.stdout


def test_diffusers_reads_it_where_asdm_is_imported(expanded: Path) -> None:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(expanded / "model", safety_checker=None)
    with torch.no_grad():
        assert torch.equal(pipe.unet(**arguments(expanded)).sample, answer(expanded))


def change_config(folder: Path, change: Any) -> None:
    """Of the UNet; `change` is told the experts and the name of the first of them."""
    file = folder / "unet/config.json"
    config = json.loads(file.read_text())
    change(config, next(iter(config["experts"])))
    file.unlink()  # it may be a link
    file.write_text(json.dumps(config))


def stock_index(folder: Path) -> None:
    file = folder / "model_index.json"
    index = json.loads(file.read_text()) | {"unet": ["diffusers", "UNet2DConditionModel"]}
    file.unlink()
    file.write_text(json.dumps(index))


def without_a_router(folder: Path) -> None:
    shard = sorted((folder / "unet").glob("*.safetensors"))[1]
    tensors = load_file(shard)
    del tensors[next(key for key in tensors if "router" in key)]
    shard.unlink()
    save_file(tensors, shard, {"format": "pt"})


def cut(folder: Path) -> None:
    shard = sorted((folder / "unet").glob("*.safetensors"))[1]
    held = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(held[:-100])


def moved(config: dict[str, Any], first: str) -> None:
    config["experts"]["down_blocks.0.resnets.0.norm1"] = config["experts"].pop(first)


CHANGES: dict[str, Any] = {
    "config": lambda config, _: config.pop("experts"),
    "class": lambda config, _: config.update(_class_name="UNet2DConditionModel"),
    "count": lambda config, first: config["experts"][first].update(experts=5),
    "none": lambda config, first: config["experts"][first].update(experts=0),
    "router": lambda config, first: config["experts"][first].update(router="stars"),
    "fields": lambda config, first: config["experts"][first].update(more=1),
    "module": moved,
}
FILES: dict[str, Any] = {"index": stock_index, "tensor": without_a_router, "cut": cut}
DAMAGED = {
    "index": "is not of the UNet beside it",
    "config": "is not of the UNet beside it",
    "class": "is not of the UNet beside it",
    "count": "where config.json asks for",
    "none": "has 0 experts",
    "router": "router must be one of features, time, both",
    "module": "is no convolution of this UNet",
    "fields": "cannot be read",
    "tensor": "the weights lack",
    "cut": "is not a whole safetensors file",
}


def test_all_damage_is_tried() -> None:
    assert set(DAMAGED) == {*CHANGES, *FILES}
    assert len(DAMAGED) == 10


@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_directories_are_refused(expanded: Path, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(expanded / "model", folder)
    if how in CHANGES:
        change_config(folder, CHANGES[how])
    else:
        FILES[how](folder)
    said = asdm("generate", folder, "a fox", "--out", tmp_path / "drawn", "--steps", "1")
    assert said.code == 2, said.text
    assert DAMAGED[how] in said.text
    assert not (tmp_path / "drawn").exists()


def verb(folder: Path, text: str, *more: str) -> Said:
    recipe = folder / "recipe.yaml"
    recipe.write_text(text)
    return asdm(text.split()[1], recipe, "--overwrite", *more)


def test_pruning_takes_experts_along(expanded: Path, tmp_path: Path) -> None:
    said = verb(
        tmp_path,
        f"verb: prune\nmodel: {expanded}\nremove: [down.2.sampler, down.3, mid, up.0]\nout: {tmp_path / 'run'}\n",
    )
    assert said.code == 0, said.text
    unet, whole = (load_unet(find(str(each)), CPU, torch.float32) for each in (tmp_path / "run", expanded))
    left = expert_layers(unet)
    assert len(left) == 18
    for name, origin in {
        "up_blocks.0.resnets.0.conv1": "up_blocks.1.resnets.0.conv1",
        "down_blocks.2.resnets.0.conv2": "down_blocks.2.resnets.0.conv2",
    }.items():
        assert torch.equal(left[name].weight, expert_layers(whole)[origin].weight)
        assert torch.equal(left[name].router.bias, expert_layers(whole)[origin].router.bias)


def test_assembling_takes_experts_along(expanded: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    donors = f"{{whole: {tiny_pipeline}, experts: {expanded}}}"
    text = f"verb: assemble\ndonors: {donors}\nmid: whole\nout: {tmp_path / 'run'}\n"
    said = verb(tmp_path, f"{text}levels: [experts, whole, whole, whole]\n")
    assert said.code == 0, said.text
    unet = load_unet(find(str(tmp_path / "run")), CPU, torch.float32)
    assert type(unet).__name__ == "ExpertUNet"
    assert sorted(expert_layers(unet)) == [
        f"{block}.resnets.{number}.conv{conv}"
        for block, count in (("down_blocks.0", 1), ("up_blocks.3", 2))
        for number in range(count)
        for conv in (1, 2)
    ]
    said = verb(tmp_path, f"{text}levels: [whole, whole, whole, whole]\n")
    assert said.code == 0, said.text
    assert torch.equal(answer(tmp_path / "run"), answer(tiny_pipeline))
    assert json.loads((tmp_path / "run/model/model_index.json").read_text())["unet"][0] == "diffusers"


def test_inherits_as_any_unet(expanded: Path) -> None:
    pipe: Any = asdm_cli.load(str(expanded), "cpu")
    wanted = picture(expanded)

    def draw() -> Tensor:
        noise = torch.Generator().manual_seed(0)
        return torch.tensor(pipe("a fox", num_inference_steps=3, generator=noise, output_type="np").images)

    rule = {"nodes": "level.0", "carry": "residual", "schedule": {"mode": "uniform", "interval": 1}}
    with asdm_cli.inherit(pipe, {"rules": [rule]}):
        assert torch.equal(draw(), wanted)
    rule["schedule"] = {"mode": "uniform", "interval": 2}
    with asdm_cli.inherit(pipe, {"rules": [rule]}):
        assert not torch.equal(draw(), wanted)
    assert torch.equal(draw(), wanted)


def test_folding_constant_routers_changes_nothing(base: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    assert expand(tmp_path, base, f"{{experts: 2, donor: {tiny_pipeline}, start: noise, noise: 0.3}}").code == 0
    said = verb(
        tmp_path,
        f"verb: condconv-expand\nmodel: {tmp_path / 'run'}\nfold: {{routing: constant}}\nout: {tmp_path / 'folded'}\n",
    )
    assert said.code == 0, said.text
    assert "nothing changes" in said.text
    torch.testing.assert_close(answer(tmp_path / "folded"), answer(tmp_path / "run"), atol=1e-5, rtol=1e-5)
    assert json.loads((tmp_path / "folded/model/model_index.json").read_text())["unet"] == [
        "diffusers",
        "UNet2DConditionModel",
    ]
    assert not expert_layers(load_unet(find(str(tmp_path / "folded")), CPU, torch.float32))


def test_folding_at_the_mean_is_measured(expanded: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\na red apple\n")
    text = f"verb: condconv-expand\nmodel: {expanded}\nout: {tmp_path / 'run'}\nfold: "
    said = verb(tmp_path, f"{text}{{routing: constant}}\n")
    assert said.code == 2
    assert "24 of 24 routers choose by what they see" in said.text
    said = verb(tmp_path, f"{text}{{routing: mean, prompts: {prompts}, steps: 3}}\n")
    assert said.code == 0, said.text
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert "PSNR to the pictures with experts" in report["summary"]
    titles = [part["title"] for part in report["parts"]]
    assert "What folding costs" in titles
    assert any(title.startswith("How the experts of") for title in titles)
    before, after = picture(expanded), picture(tmp_path / "run")
    assert not torch.equal(before, after)
    assert float((before - after).abs().mean()) < 0.2


REFUSED = {
    "{experts: 2}": "expand.donor: must be given, or 'at'",
    "{experts: 2, start: inherited, at: [mid]}": "expand.donor: must be given with 'start: inherited'",
    "{experts: 1, at: [mid]}": "expand.experts: must be at least 2",
    "{experts: 2, at: [mid], noise: 0.1}": "expand.noise: goes with 'start: noise'",
    "{experts: 2, at: [mid], share: 0.1}": "expand.share: goes with 'start: inherited'",
    "{experts: 2, at: [nowhere]}": "nowhere",
    "{experts: 2, at: [down.0.sampler]}": "has no resnet",
    "{experts: 2, at: [mid], router: moon}": "expand.router: must be one of",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused(base: Path, tmp_path: Path, what: str) -> None:
    said = expand(tmp_path, base, what)
    assert said.code == 2
    assert REFUSED[what] in said.text, said.text
    assert not (tmp_path / "run").exists()


def test_experts_of_experts_are_refused(expanded: Path, tiny_pipeline: Path, base: Path, tmp_path: Path) -> None:
    said = expand(tmp_path, expanded, "{experts: 2, at: [mid]}")
    assert said.code == 2
    assert "made of experts already" in said.text
    said = expand(tmp_path, tiny_pipeline, f"{{experts: 2, donor: {tiny_pipeline}}}")
    assert "no block has fewer layers than the donor's" in said.text
    said = verb(tmp_path, f"verb: condconv-expand\nmodel: {base}\nfold: {{}}\nout: {tmp_path / 'run'}\n")
    assert "has no expert convolutions" in said.text
    said = verb(tmp_path, f"verb: condconv-expand\nmodel: {base}\nout: {tmp_path / 'run'}\n")
    assert "expand: must be given, or 'fold'" in said.text


def test_bench_and_eval_take_it(expanded: Path, base: Path, tmp_path: Path) -> None:
    random = "{name: random, random: sd15, remove: base, expand: {experts: 2, donor: sd15}}"
    models = f"models: [{{name: base, model: {base}}}, {{name: experts, model: {expanded}}}, {random}]"
    said = verb(tmp_path, f"verb: bench\n{models}\nimages: false\nout: {tmp_path / 'b'}\n", "--dry-run")
    assert said.code == 0, said.text
    assert "2 experts by time" in said.text
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\na red apple\n")
    models = f"models: [{{name: base, model: {base}}}, {{name: experts, model: {expanded}}}]"
    text = f"verb: eval\n{models}\nprompts: {prompts}\nmetrics: [psnr]\nsteps: 2\nout: {tmp_path / 'e'}\n"
    said = verb(tmp_path, text)
    assert said.code == 0, said.text
    parts = json.loads((tmp_path / "e/report.json").read_text())["parts"]
    table = next(part for part in parts if part["title"] == "How the experts of experts are used")
    assert len(table["rows"]) == 24
    assert all(0 < row["effective"] <= 3 + 1e-6 for row in table["rows"])
