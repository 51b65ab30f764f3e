"""`asdm export`, typed: what is written, what is refused, who is said to read it, and what arrives at the hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import asdm_cli
from asdm_cli.models import readers
from asdm_cli.models.directory import ModelDirectory, find
from asdm_cli.models.families import configs
from asdm_cli.unet import surgery
from asdm_cli.unet.weights import WEIGHTS
from tests import expanding, families, uploads
from tests.loras import low_ranks, written
from tests.turns import switching
from tests.typed import Said, asdm

EVERY_OTHER = {"rules": [{"nodes": "up.0", "schedule": {"mode": "uniform", "interval": 2}}]}


def exported(model: Path, target: Path, *more: object, to: str = "single-file") -> Said:
    return asdm("export", model, "--to", to, "--out", target, *more)


def line_of(card: Path, place: Path) -> Any:
    """What the lines of Python in a model card make, once PATH is a place."""
    code = card.read_text().partition("```python\n")[2].partition("```")[0].replace("PATH", str(place))
    made: dict[str, Any] = {}
    exec(code, made)
    return made.get("pipe") or made["unet"]


def alike(one: Any, other: Any) -> bool:
    wanted, found = one.state_dict(), other.state_dict()
    return wanted.keys() == found.keys() and all(torch.equal(wanted[key], found[key]) for key in wanted)


@pytest.fixture(scope="module")
def with_a_plan(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a model that inherits, with figures."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "prompts.txt").write_text("a fox\nan owl\n")
    few = {"steps": 2, "device": "cpu", "metrics": ["psnr"], "bootstrap": 20, "repeats": 1, "warmups": 1}
    recipe = {"verb": "inherit", "model": str(tiny_pipeline), "plan": EVERY_OTHER, "fewer_steps": [], **few}
    return expanding.done(folder, {**recipe, "prompts": str(folder / "prompts.txt")})


def test_the_lines_of_a_card_load_the_file(tiny_base: Path, tmp_path: Path) -> None:
    said = exported(tiny_base, tmp_path / "out")
    assert said.code == 0, said.err
    assert said.out.strip() == str(tmp_path / "out")
    assert "diffusers: reads it" in said.text
    assert f'from_single_file("{tmp_path}/out/run.safetensors", config="{tmp_path}/out/config")' in said.text
    pipe, there = line_of(tmp_path / "out/README.md", tmp_path / "out"), asdm_cli.load(str(tiny_base))
    assert alike(pipe.unet, there.unet)
    assert alike(pipe.vae, there.vae)
    assert alike(pipe.text_encoder, there.text_encoder)
    drawn = [each("a fox", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
             for each in (pipe, there)]  # fmt: skip
    assert (drawn[0] == drawn[1]).all()


def test_the_file_that_is_exported_is_not_replaced(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert asdm("export", tiny_pipeline, "--to", "single-file", "--out", tmp_path / "one").code == 0
    (file,) = (tmp_path / "one").glob("*.safetensors")
    told = asdm("show", tmp_path / "one")
    assert f"give one of those in it, as {file}" in " ".join(told.err.split())
    before = file.read_bytes()
    for verb in (("export", file, "--to", "diffusers"), ("generate", file, "a fox", "--steps", "1")):
        said = asdm(*verb, "--out", tmp_path / "one", "--overwrite")
        assert said.code == 2
        assert "which is read, lies in" in " ".join(said.err.split())
        assert file.read_bytes() == before


def test_the_unet_alone(tiny_base: Path, tmp_path: Path) -> None:
    assert exported(tiny_base, tmp_path / "out", "--unet-only").code == 0
    names = load_file(tmp_path / "out/run.safetensors").keys()
    assert all(name.startswith("model.diffusion_model.") for name in names)
    unet = line_of(tmp_path / "out/README.md", tmp_path / "out")
    assert alike(unet, asdm_cli.load(str(tiny_base)).unet)
    assert exported(tiny_base / "model/unet", tmp_path / "bare").code == 0
    assert load_file(tmp_path / "bare/unet.safetensors").keys() == names


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_directory_in_another_format(tiny_pipeline: Path, tmp_path: Path, dtype: str) -> None:
    option = ["--fp16"] if dtype == "float16" else ["--dtype", dtype]
    assert exported(tiny_pipeline, tmp_path / "out", *option, to="diffusers").code == 0
    pipe = line_of(tmp_path / "out/README.md", tmp_path / "out")
    there = diffusers.StableDiffusionPipeline.from_pretrained(tiny_pipeline, torch_dtype=getattr(torch, dtype))
    for part in ("unet", "vae", "text_encoder"):
        assert getattr(pipe, part).dtype == getattr(torch, dtype)
        assert alike(getattr(pipe, part), getattr(there, part))
    read = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    assert {part.dtype for part in (read.text_encoder,)} <= {getattr(torch, dtype), torch.float32}
    assert (tmp_path / "out/clip/model.safetensors").read_bytes() == (
        tiny_pipeline / "clip/model.safetensors"
    ).read_bytes()
    find(str(tmp_path / "out"))


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_eight_bits_are_read_fused_and_written_anew(
    kind: torch.dtype, tiny_pipeline: Path, tmp_path: Path
) -> None:
    """The UNet's, and those of a LoRA."""
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    file = model / "unet" / WEIGHTS
    held = {name: tensor.to(kind) for name, tensor in load_file(file).items()}
    file.unlink()
    save_file(held, file, {"format": "pt"})
    assert exported(model, tmp_path / "half", "--dtype", "float16", to="diffusers").code == 0
    found = load_file(tmp_path / "half/unet" / WEIGHTS)
    assert all(torch.equal(found[name], tensor.half()) for name, tensor in held.items())
    lora = written(tmp_path / "lora.safetensors", tiny_pipeline, low=low_ranks(tiny_pipeline, r"up_blocks.*to_q"))
    eight = {name: each.to(kind) if each.dim() > 1 else each for name, each in load_file(lora.file).items()}
    save_file(eight, tmp_path / "eight.safetensors")
    adapters = [{"path": str(tmp_path / "eight.safetensors")}]
    recipe = {"verb": "inherit", "model": str(model), "plan": EVERY_OTHER, "measure": False, "adapters": adapters}
    fused = load_file(expanding.done(tmp_path / "fused", recipe) / "model/unet" / WEIGHTS)
    moved = [name for name, each in fused.items() if not torch.equal(each.float(), held[name].float())]
    assert moved
    assert all("to_q" in name and fused[name].dtype == kind for name in moved)


def test_a_dry_run_looks_where_something_is(tiny_pipeline: Path, tmp_path: Path) -> None:
    assert exported(tiny_pipeline, tmp_path / "out", to="diffusers").code == 0
    said = exported(tiny_pipeline, tmp_path / "out", "--dry-run", to="diffusers")
    assert (said.code, "the export itself needs --overwrite" in said.text) == (0, True)
    assert exported(tiny_pipeline, tmp_path / "out", to="diffusers").code == 2


def test_values_beyond_a_format_are_counted_and_nothing_is_written(tiny_pipeline: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "model")
    file = tmp_path / "model/unet" / WEIGHTS
    held = load_file(file)
    held["conv_in.weight"].view(-1)[:3] = torch.tensor([65504.0, 65600.0, -1e9])
    save_file(held, file, {"format": "pt"})
    for to in ("single-file", "diffusers"):
        said = exported(tmp_path / "model", tmp_path / "out", "--fp16", to=to)
        assert said.code == 2
        assert "2 values are no finite numbers in float16" in said.text
        assert "conv_in" in said.text or "input_blocks.0.0.weight (2)" in said.text
        assert "--dtype bfloat16" in said.text
        assert not (tmp_path / "out").exists()
    assert exported(tmp_path / "model", tmp_path / "out", "--dtype", "bfloat16").code == 0


def test_a_plan_is_refused_left_out_or_kept(with_a_plan: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    said = exported(with_a_plan, tmp_path / "out")
    assert said.code == 2
    assert "carries what no single file can say (inherits up.0" in said.text
    assert "--to diffusers keeps it, and --plain leaves it out" in said.text
    assert exported(with_a_plan, tmp_path / "file", "--plain").code == 0
    assert alike(line_of(tmp_path / "file/README.md", tmp_path / "file").unet, asdm_cli.load(str(tiny_pipeline)).unet)
    assert exported(with_a_plan, tmp_path / "kept", "--fp16", to="diffusers").code == 0
    card = (tmp_path / "kept/README.md").read_text()
    assert "library_name: asdm-cli" in card
    assert "import asdm_cli" in card
    assert "inherits up.0" in card
    assert "PSNR" in card
    assert "| resolution | 32 x 32 |" in card
    assert json.loads((tmp_path / "kept/asdm.json").read_text())["patches"]
    asdm_cli.load(str(tmp_path / "kept"))
    assert exported(with_a_plan, tmp_path / "plain", "--plain", to="diffusers").code == 0
    assert "patches" not in json.loads((tmp_path / "plain/asdm.json").read_text())
    assert "import asdm_cli" not in (tmp_path / "plain/README.md").read_text()


@pytest.mark.parametrize("to", ["diffusers", "single-file"])
def test_of_several_unets_the_first_is_left(to: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    model = switching(tiny_pipeline, tiny_pipeline, tmp_path / "turns")
    assert exported(model, tmp_path / "out", "--plain", to=to).code == 0
    assert not [*(tmp_path / "out").rglob("unets")]
    if to == "diffusers":
        asdm_cli.load(str(tmp_path / "out"))
        assert asdm("show", tmp_path / "out").code == 0


def test_a_place_may_have_quotes(tiny_pipeline: Path, tmp_path: Path) -> None:
    said = exported(tiny_pipeline, tmp_path / 'a "b" c')
    assert said.code == 0
    (line,) = [each for each in said.err.splitlines() if "from_single_file(" in each]
    compile(line, "told", "exec")


def test_experts_are_refused(tiny_experts: Path, tmp_path: Path) -> None:
    said = exported(tiny_experts, tmp_path / "out")
    assert said.code == 2
    assert (
        "has expert convolutions, which no single file can say; make plain ones of them first, with `fold`" in said.text
    )
    assert exported(tiny_experts, tmp_path / "out", to="diffusers").code == 0
    asdm_cli.load(str(tmp_path / "out"))


def test_what_has_no_place_is_named_with_a_way_out(tiny_pipeline: Path, tmp_path: Path) -> None:
    model = families.pipeline("sd15", tmp_path / "model", time_cond_proj_dim=4)
    said = exported(model, tmp_path / "out")
    assert said.code == 2
    assert "time_embedding.cond_proj.weight has no place in a single file of the original layout" in said.text
    assert exported(tiny_pipeline, tmp_path / "out", "--fp16", "--dtype", "float32").code == 2
    assert exported(tiny_pipeline, tmp_path / "out", "--unet-only", to="diffusers").code == 2
    assert exported(tiny_pipeline, tmp_path / "out", "--dtype", "float8").code == 2
    assert not (tmp_path / "out").exists()


# Who reads it: what was found with ComfyUI's and A1111's own code, for real shapes.


def shaped(family: str, folder: Path, unet: dict[str, Any] | None = None, **scheduler: Any) -> Path:
    """The configurations of a real model, as a directory without weights."""
    for name, held in configs(family).items():
        held = {**held, **scheduler} if name.startswith("scheduler/") else held
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(unet if unet and name.startswith("unet/") else held))
    return folder


def pruned(family: str, name: str) -> dict[str, Any]:
    config = configs(family)["unet/config.json"]
    return surgery.remove(config, name).config if name else config


UNIFORM = {"sd15": ("", "base", "small", "tiny"), "sd21": ("", "base", "small", "tiny"), "sdxl": ("", "base", "small")}
READ = [(family, name) for family, names in UNIFORM.items() for name in names]


@pytest.mark.parametrize(("family", "name"), READ)
def test_who_reads_it(family: str, name: str, tmp_path: Path) -> None:
    model = directory(shaped(family, tmp_path, pruned(family, name)))
    assert str(readers.diffusers(model)) == "diffusers: reads it"
    comfyui, (a1111, extra) = readers.comfyui(model, True), readers.a1111(model, True)
    if family == "sdxl" and name:
        assert "it knows SDXL by the transformers on the way down, which are [0, 2, 10]" in str(comfyui)
    else:
        assert not comfyui.not_because
        assert any("v_prediction" in each for each in comfyui.needs) == (family == "sd21")
    if (family, name) == ("sdxl", "small"):
        assert "middle block" in str(a1111)
        assert extra is None
    else:
        assert not a1111.not_because
        assert (extra is not None) == bool(name)
        assert yaml.safe_load(yaml.safe_dump(extra)) == extra


def test_layers_that_differ_by_level_are_for_some(tmp_path: Path) -> None:
    config = {**configs("sd15")["unet/config.json"], "layers_per_block": [1, 1, 2, 2]}
    model = directory(shaped("sd15", tmp_path, config))
    assert "counts on one layers_per_block" in str(readers.diffusers(model))
    assert str(readers.comfyui(model, True)) == "ComfyUI: reads it"
    extra = readers.a1111(model, True)[1]
    assert extra
    assert extra["model"]["params"]["unet_config"]["params"]["num_res_blocks"] == [1, 1, 2, 2]


def directory(folder: Path) -> ModelDirectory:
    return ModelDirectory(folder, "model", "model")


# The hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[uploads.Uploads]:
    with uploads.server() as held:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", held.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_of_tests")
        yield held


def test_what_is_pushed_arrives(tiny_base: Path, tmp_path: Path, hub: uploads.Uploads) -> None:
    said = exported(tiny_base, tmp_path / "out", "--push", "somebody/small", "--private")
    assert said.code == 0, said.err
    assert f"{hub.address}/somebody/small" in said.text
    told = hub.repositories["somebody/small"]
    assert told.get("visibility") == "private" or told.get("private") is True, "old and new versions say it so"
    written = {
        str(file.relative_to(tmp_path / "out")): file.read_bytes()
        for file in (tmp_path / "out").rglob("*")
        if file.is_file()
    }
    del written[".asdm"]
    assert hub.files == written
    assert hub.large, "weights go by LFS"
    assert hub.tokens == {"Bearer hf_of_tests"}
    assert 'snapshot_download("somebody/small")' in written["README.md"].decode()


def test_a_dry_run_sends_nothing_and_says_what_it_would(tiny_base: Path, tmp_path: Path, hub: uploads.Uploads) -> None:
    said = exported(tiny_base, tmp_path / "out", "--push", "somebody/small", "--dry-run")
    assert said.code == 0
    assert f"Sent to {hub.address}/somebody/small: a public repository" in said.text
    assert "run.safetensors: " in said.text
    assert not hub.repositories
    assert not (tmp_path / "out").exists()


def test_a_push_that_cannot_be_is_refused_first(
    tiny_base: Path, tmp_path: Path, hub: uploads.Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, told in (("small", "names nobody"), ("a b/c", "is no name of a repository"), ("a/b/c", "is no name")):
        said = exported(tiny_base, tmp_path / "out", "--push", name)
        assert said.code == 2
        assert told in said.text
    assert "--private: goes with --push" in exported(tiny_base, tmp_path / "out", "--private").text
    hub.refuses = 403
    said = exported(tiny_base, tmp_path / "out", "--push", "somebody/small")
    assert said.code == 1
    assert "was not sent" in said.text
    assert f"`hf upload somebody/small {tmp_path}/out` sends it" in said.text
    assert (tmp_path / "out/run.safetensors").is_file()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "set HF_TOKEN" in exported(tiny_base, tmp_path / "other", "--push", "somebody/small").text
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in exported(tiny_base, tmp_path / "other", "--push", "somebody/small").text
    assert not (tmp_path / "other").exists()
