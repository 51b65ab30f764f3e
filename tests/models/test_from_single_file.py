"""Single files of every family become the pipelines that they were made of, once, and say what they are taken for."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

import asdm_cli
from asdm_cli.errors import AsdmError, ModelError, RunError
from asdm_cli.models import from_single_file
from asdm_cli.models.directory import INDEX, find
from asdm_cli.models.families import configs
from asdm_cli.models.from_single_file import unpickled
from asdm_cli.models.metadata import history
from asdm_cli.models.single_file import pieces
from asdm_cli.unet.weights import write_tensors
from asdm_cli.verbs import _usual
from tests import families
from tests.forking import plain
from tests.hub import Repository, serving, use
from tests.typed import asdm

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
KINDS = {
    "sd15": ("StableDiffusionPipeline", "epsilon"),
    "sd15-inpaint": ("StableDiffusionInpaintPipeline", "epsilon"),
    "sd15-pix2pix": ("StableDiffusionInstructPix2PixPipeline", "epsilon"),
    "sd21": ("StableDiffusionPipeline", "v_prediction"),
    "sd21-inpaint": ("StableDiffusionInpaintPipeline", "epsilon"),
    "sdxl": ("StableDiffusionXLPipeline", "epsilon"),
    "sdxl-v": ("StableDiffusionXLPipeline", "v_prediction"),
    "sdxl-inpaint": ("StableDiffusionXLInpaintPipeline", "epsilon"),
}


class Files:
    """Tiny files, and their families' configurations as small as they are."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.patch = folder, monkeypatch
        self.told: list[str] = []
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setattr(from_single_file, "note", self.told.append)

    def make(self, kind: str) -> tuple[Path, Path]:
        """The file, and the directory that it holds."""
        source = families.pipeline(kind, self.folder / kind)

        def small(family: str) -> dict[str, dict[str, Any]]:
            held = configs(family)
            own = [place for place in held if place.endswith("/config.json")]
            held["tokenizer/tokenizer_config.json"]["model_max_length"] = families.tiny.TOKENS
            return held | {place: json.loads((source / place).read_text()) for place in own}

        self.patch.setattr(from_single_file, "configs", small)
        words = shutil.ignore_patterns("tokenizer_config.json")
        copied = lambda folder: shutil.copytree(source / folder.name, folder, ignore=words, dirs_exist_ok=True)  # noqa: E731
        self.patch.setattr(from_single_file, "write_tokenizer", copied)
        file = self.folder / f"{kind}.safetensors"
        write_tensors(pieces(find(str(source))), file)
        return file, source


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    return Files(tmp_path, monkeypatch)


def states(folder: Path) -> dict[str, torch.Tensor]:
    pipe: Any = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    found = [(name, getattr(pipe, name, None)) for name in PARTS]
    return {f"{name}.{key}": each for name, part in found if part for key, each in part.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_the_pipeline_that_it_was_made_of(kind: str, files: Files) -> None:
    """To the bit, as stock diffusers loads both; diffusers reads the same: tests of export."""
    file, source = files.make(kind)
    made = find(str(file))
    assert (made.index["_class_name"], made.config("scheduler").get("prediction_type", "epsilon")) == KINDS[kind]
    assert (made.name, len(files.told)) == (kind, 1)
    assert ("(assumed; if not, write" in files.told[0]) == kind.startswith("sd21")
    assert ("(the file says so)" in files.told[0]) == (kind == "sdxl-v")
    torch.testing.assert_close(states(made.path), states(source), rtol=0, atol=0)
    assert find(str(file)).path == made.path
    assert len(files.told) == 1


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_vae_beside_the_file_takes_the_place_of_its_own_or_of_none(prefix: str, files: Files) -> None:
    file, source = files.make("sd15")
    held, mark = load_file(file), "first_stage_model."
    vae = {f"{prefix}{name.removeprefix(mark)}": each * 2 for name, each in held.items() if name.startswith(mark)}
    beside = file.with_name("sd15.vae.safetensors")
    plain = find(str(file))
    save_file({**vae, "loss.logvar": torch.zeros(1)}, beside)
    for tensors in (held, {name: each for name, each in held.items() if not name.startswith(mark)}):
        save_file(tensors, file)
        found = find(str(file))
        assert found.path != plain.path
        assert files.told[-1].count("with the VAE of sd15.vae.safetensors") == 1
        ours, theirs = states(found.path), states(source)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], (2 if name.startswith("vae") else 1) * theirs[name]) for name in ours)
    beside.unlink()
    with pytest.raises(
        ModelError, match=r"holds a UNet without a VAE; .*; or put its VAE beside it, as sd15\.vae\.saf"
    ):
        find(str(file))
    save_file(load_file(next((source / "vae").glob("*.safetensors"))), beside)
    with pytest.raises(ModelError, match=r"sd15\.vae\.safetensors: holds a VAE as diffusers has it"):
        find(str(file))


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (
            "model.diffusion_model.time_embed.cond_proj.weight",
            "its UNet has also 1 tensors, as model.diff",
        ),
        ("edm_vpred.sigma_max", "holds edm_vpred.sigma_max: it was trained with another noise"),
    ],
)
def test_a_unet_that_the_family_does_not_know_is_another(extra: str, told: str, files: Files) -> None:
    file, _ = files.make("sdxl")
    save_file({**load_file(file), extra: torch.ones(1)}, file)
    with pytest.raises(ModelError, match=re.escape(told)):
        find(str(file))


def test_a_name_without_a_folder_is_the_file_here(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the folder is one of a pipeline, in whose directory files may lie that are no part of it."""
    file, source = files.make("sd15")
    shutil.move(file, source / "whole.safetensors")
    monkeypatch.chdir(source)
    assert find("whole.safetensors").path == find(str(source / "whole.safetensors")).path


def test_half_precision_and_what_no_pipeline_needs(files: Files) -> None:
    """Averaged weights, and what training and old libraries left in the file."""
    file, source = files.make("sd15")
    held = {name: tensor.half() for name, tensor in load_file(file).items()}
    extra = {f"model_ema.{name.removeprefix('model.').replace('.', '')}": tensor + 1 for name, tensor in held.items()}
    extra |= {"alphas_cumprod": torch.ones(1000), "model_ema.decay": torch.ones(())}
    extra |= {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(16)[None]}
    save_file({**held, **extra}, file)
    made = find(str(file))
    wanted = {name: tensor.half() for name, tensor in states(source).items()}
    assert {each.dtype for each in load_file(made.path / "unet/diffusion_pytorch_model.safetensors").values()} == {
        torch.float16
    }
    torch.testing.assert_close({name: each.half() for name, each in states(made.path).items()}, wanted, rtol=0, atol=0)


def test_what_no_unet_sees_of_a_text_encoder_is_left_out(files: Files) -> None:
    """CLIP's own projection, which user interfaces write along."""
    file, source = files.make("sd15")
    name = "cond_stage_model.transformer.text_projection.weight"
    save_file({**load_file(file), name: torch.eye(16)}, files.folder / "spare.safetensors")
    made = find(str(files.folder / "spare.safetensors"))
    torch.testing.assert_close(states(made.path), states(source), rtol=0, atol=0)


def test_what_stands_beside_the_file_decides_what_is_predicted(files: Files) -> None:
    file, _ = files.make("sd21")
    beside = file.with_suffix(".yaml")
    sizes = {}
    for text, told in {"": "v_prediction", "model:\n  params:\n    parameterization: eps\n": "epsilon",
                       'model: {params: {parameterization: "v"}}\n': "v_prediction"}.items():  # fmt: skip
        beside.write_text(text)
        made = find(str(file))
        assert made.config("scheduler")["prediction_type"] == told
        sizes[told] = made.config("unet")["sample_size"]
    assert sizes["epsilon"] == 64
    beside.write_text("model: {params: {parameterization: flow}}")
    with pytest.raises(ModelError, match=r"sd21\.yaml: parameterization is 'flow'; it must be one of eps, v, x0"):
        find(str(file))


def test_once_per_file_whole_or_not_at_all(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = files.make("sd15")
    cache = files.folder / "cache" / "asdm" / "single-files"
    with monkeypatch.context() as patch:
        patch.setattr(from_single_file, "_check", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            find(str(file))
    assert not [each for each in cache.iterdir() if each.is_dir()]
    made = find(str(file))
    copied = shutil.copy(file, files.folder / "other.safetensors")
    assert (find(str(copied)).path, find(str(copied)).name) == (made.path, "other")
    held = load_file(file)
    held["model.diffusion_model.out.2.bias"] += 1
    save_file(held, file)
    assert find(str(file)).path != made.path
    assert len(list(cache.glob("[0-9a-f]*"))) == 2


def test_a_cache_that_cannot_be_made_is_told(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = files.make("sd15")
    (files.folder / "taken").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(files.folder / "taken/cache"))
    with pytest.raises(RunError, match=r"taken/cache.*: a part of this path is a file; .*set XDG_CACHE_HOME to"):
        find(str(file))


def test_a_file_that_is_not_as_its_family_is(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = files.make("sd15")
    held = load_file(file)
    for change, told in {
        "cut": "is not a whole safetensors file",
        "without a tensor": "is not as its family is .*needs its folder config/ beside it",
        "depth": "takes in 5 channels, and single files of 4, 8, 9 are read",
    }.items():
        other = files.folder / "other.safetensors"
        if change == "cut":
            other.write_bytes(file.read_bytes()[:-100])
        elif change == "depth":
            save_file({**held, "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 5, 3, 3)}, other)
        else:
            save_file({name: each for name, each in held.items() if name != "model.diffusion_model.out.2.bias"}, other)
        with pytest.raises(ModelError, match=told) as caught:
            find(str(other))
        assert str(other) in str(caught.value)
    monkeypatch.setattr(from_single_file, "configs", configs)
    with pytest.raises(ModelError, match="is not as its family is"):
        find(str(file))
    xl, _ = files.make("sdxl")
    held = {name: each for name, each in load_file(xl).items() if "label_emb" not in name}
    save_file(held, files.folder / "other.safetensors")
    with pytest.raises(ModelError, match=r"is not as its family is .*label_emb"):
        find(str(files.folder / "other.safetensors"))


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sdxl-refiner"])
def test_what_export_writes_is_read_back(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pruned UNet and words of its own: the configurations beside the file say so."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = families.pipeline(kind, tmp_path / kind)
    recipe = tmp_path / "recipe.yaml"
    what = "mid" if kind == "sdxl-refiner" else "base"
    recipe.write_text(f"verb: prune\nmodel: {source}\nremove: {what}\nout: {tmp_path / 'run'}\n")
    assert asdm("prune", recipe, "-q").code == 0
    told = asdm("export", tmp_path / "run", "--to", "single-file", "--out", tmp_path / "sent", "-q")
    assert told.code == 0, told.err
    made = find(str(next((tmp_path / "sent").glob("*.safetensors"))))
    torch.testing.assert_close(states(made.path), states(tmp_path / "run" / "model"), rtol=0, atol=0)
    for name in (
        ("tokenizer_2/tokenizer.json",) if kind == "sdxl-refiner" else ("tokenizer/vocab.json", "tokenizer/merges.txt")
    ):
        assert (made.path / name).read_bytes() == (source / name).read_bytes()


def test_configurations_beside_a_file_are_of_the_file_that_was_written_with_them(files: Files) -> None:
    """By whatever name it goes since; not of another one, which is as its family is."""
    _, source = files.make("sd15")
    step = {"verb": "inherit", "measured_with": {"guidance": 2.5}}
    (source / "asdm.json").write_text(json.dumps({"history": [step]}))
    assert asdm("export", source, "--to", "single-file", "--out", files.folder / "sent", "-q").code == 0
    file = files.folder / "sent/sd15.safetensors"
    place = files.folder / "sent/config/scheduler/scheduler_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"prediction_type": "v_prediction"}))
    other = Path(shutil.copy(file, file.with_name("other.safetensors")))
    told = {each: find(str(each)).config("scheduler")["prediction_type"] for each in (file, other)}
    assert told == {file: "v_prediction", other: "epsilon"}
    assert [_usual(str(each))["guidance"] for each in (file, other)] == [2.5, 7.5], "as it was measured"
    file.unlink()
    assert find(str(other)).config("scheduler")["prediction_type"] == "v_prediction"
    third = other.with_name("third.safetensors")
    save_file(load_file(other), third, {"format": "pt", "title": "another"})
    for name, means in ((third, "epsilon"), (other, "v_prediction")):
        assert find(str(name)).config("scheduler")["prediction_type"] == means, "whichever is called as the first"
    index = files.folder / "sent/config/asdm.json"
    held = json.loads(index.read_text())
    held["history"][-1].pop("header")  # as earlier exports wrote it
    index.write_text(json.dumps(held))
    assert find(str(other)).config("scheduler")["prediction_type"] == "epsilon"
    third.unlink()
    assert find(str(other)).config("scheduler")["prediction_type"] == "v_prediction"


def test_a_file_on_the_hub_is_named_by_its_address(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = files.make("sd15")
    with serving() as hub:
        use(hub, files.folder / "hub", monkeypatch)
        (files.folder / "served").mkdir()
        hub.repositories["org/single"] = Repository(files.folder / "served")
        file.rename(files.folder / "served" / file.name)
        address = f"{hub.endpoint}/org/single/blob/main/{file.name}"
        for _ in range(2):
            made = find(address)
            assert (made.name, made.is_pipeline) == ("sd15", True)
        assert hub.fetched() == [file.name]
        with pytest.raises(AsdmError, match=r"org/single: has no such file; see .*/org/single/tree/main"):
            find(address.replace("sd15", "none"))


def test_a_pickle_becomes_a_file_by_the_command_that_is_told(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, source = files.make("sd15")
    pickle = file.rename(file.with_suffix(".tmp")).with_suffix(".ckpt")
    trainers = "pytorch_lightning.callbacks.model_checkpoint"  # as the first files had it
    known = type("ModelCheckpoint", (), {"__module__": trainers})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", trainers):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(ModelCheckpoint=known))
    held = {"state_dict": load_file(file.with_suffix(".tmp")), "global_step": 7, "callbacks": {known: {"best": 1.0}}}
    torch.save(held, pickle)
    with pytest.raises(ModelError, match="loading one can run any code") as caught:
        find(str(pickle))
    words = shlex.split(str(caught.value).partition("give that: ")[2])
    assert (words[:2], words[3:]) == (["python", "-c"], [str(pickle), str(file)])
    done = plain(words[2], *words[3:], cwd=tmp_path)
    assert done.code == 0, done.err
    torch.testing.assert_close(states(find(str(file)).path), states(source), rtol=0, atol=0)
    assert "'my models/a.ckpt' 'my models/a.safetensors'" in unpickled("my models/a.ckpt")


def test_every_way_takes_it(files: Files) -> None:
    file, _ = files.make("sd15")
    recipe = files.folder / "recipe.yaml"
    recipe.write_text(f"verb: prune\nmodel: {file}\nremove: base\nout: {files.folder / 'run'}\n")
    told = asdm("prune", recipe, "-q")
    assert told.code == 0, told.err
    made = find(str(files.folder / "run"))
    assert history(made)[0]["source"] == "sd15"
    assert json.loads((made.path / INDEX).read_text())["unet"] == ["diffusers", "UNet2DConditionModel"]
    pipe: Any = asdm_cli.load(str(file), "cpu")
    assert pipe("a fox", num_inference_steps=1, output_type="np", height=32, width=32).images.shape == (1, 32, 32, 3)
