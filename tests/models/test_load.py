"""Models in memory: what the files hold, on the asked device, or an error in words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asdm_cli.errors import ModelError
from asdm_cli.models.directory import find
from asdm_cli.models.load import device_and_dtype, load_clip, load_pipeline, load_unet, random_unet
from asdm_cli.models.schedulers import SAMPLERS, set_sampler
from asdm_cli.unet.weights import WEIGHTS
from tests import tiny

CPU = torch.device("cpu")


def test_device_and_dtype() -> None:
    assert device_and_dtype("cpu", "auto") == (CPU, torch.float32)
    assert device_and_dtype("cpu", "bfloat16") == (CPU, torch.bfloat16)
    assert device_and_dtype()[0].type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("device", "dtype"), [("gpu", "auto"), ("cuda:99", "auto"), ("cpu", "float17")])
def test_impossible_places_are_explained(device: str, dtype: str) -> None:
    with pytest.raises(ModelError, match="use"):
        device_and_dtype(device, dtype)


def test_pipeline_draws_and_takes_every_sampler(tiny_pipeline: Path) -> None:
    pipe = load_pipeline(find(str(tiny_pipeline)), CPU, torch.float32)
    pictures = {}
    for name in ("own", *SAMPLERS):
        set_sampler(pipe, name)
        generator = torch.Generator().manual_seed(0)
        pictures[name] = pipe("a fox", num_inference_steps=3, generator=generator, output_type="np").images
        assert pipe.scheduler.config.beta_end == 0.012
    assert pictures["own"].shape == (1, 32, 32, 3)
    assert (pictures["own"] == pictures["ddim"]).all()
    assert all((pictures[name] != pictures["own"]).any() for name in ("pndm", "euler", "heun", "dpm++2m", "unipc"))
    with pytest.raises(ModelError, match="sampler 'plms' is unknown"):
        set_sampler(pipe, "plms")


def test_unet_has_the_files_tensors(tiny_pipeline: Path) -> None:
    unet = load_unet(find(str(tiny_pipeline)), CPU, torch.float32)
    files = load_file(tiny_pipeline / "unet" / WEIGHTS)
    assert not unet.training
    assert unet.state_dict().keys() == files.keys()
    assert all(torch.equal(tensor, files[name]) for name, tensor in unet.state_dict().items())
    assert load_unet(find(str(tiny_pipeline)), CPU, torch.float16).dtype == torch.float16


def test_random_unet_depends_on_the_seed_alone() -> None:
    config = tiny.SHAPES["sd15"]
    before = torch.random.get_rng_state()
    first, again, other = (random_unet(config, CPU, torch.float32, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    pairs = [(first.state_dict()[key], again.state_dict()[key], other.state_dict()[key]) for key in first.state_dict()]
    assert len(pairs) > 300
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


def test_clip_of_a_model_and_of_a_directory(tiny_pipeline: Path) -> None:
    own, bare = load_clip(find(str(tiny_pipeline))), load_clip(tiny_pipeline / "clip")
    assert own.size == bare.size == 32
    assert own.mean == own.std == (0.5, 0.5, 0.5)
    tokens = own.tokenizer(["a fox"], return_tensors="pt")
    with torch.no_grad():
        features = [clip.model.get_text_features(**tokens).pooler_output for clip in (own, bare)]
    assert torch.equal(*features)
    with pytest.raises(ModelError, match="no component 'clip'"):
        load_clip(find(str(tiny_pipeline / "unet")))
