"""Costs on paper against independent counts, and alike on every device."""

from __future__ import annotations

from typing import Any

import pytest

from asdm_cli.errors import ModelError
from asdm_cli.unet import flops
from asdm_cli.unet.blocks import preset
from asdm_cli.unet.flops import OUTSIDE, built_shapes, inputs, macs, macs_of, meta_unet, parameters
from asdm_cli.unet.surgery import remove
from tests import tiny

COUNTED = {"": (401.64, 338.61), "base": (261.50, 223.68), "small": (255.45, 217.65), "tiny": (242.75, 204.95)}
"""GMACs of SD 1.x and BK-SDM with and without attention's matmuls; 64 x 64 latent, 77 tokens, batch 1.

The second is within 0.1 G of what BK-SDM's authors give for the first two (338.75 and 223.76, counted by thop)."""
BLOCKS = {
    "down.0": 54.78, "down.1": 34.18, "down.2": 31.89, "down.3": 3.78, "mid": 6.05,
    "up.0": 12.90, "up.1": 75.77, "up.2": 83.41, "up.3": 98.78,
}  # fmt: skip
"""GMACs per block of SD 1.x, with attention's matmuls."""
PARAMETERS = {
    "down.0": 10.52, "down.1": 36.82, "down.2": 139.99, "down.3": 62.28, "mid": 97.04,
    "up.0": 162.24, "up.1": 258.33, "up.2": 71.41, "up.3": 18.81,
}  # fmt: skip
"""Millions of parameters per block of SD 1.x."""


@pytest.mark.parametrize("name", COUNTED)
def test_macs_of_sd_and_bk_sdm(name: str) -> None:
    whole = macs(remove(preset("sd15"), name).config if name else preset("sd15"))
    assert (whole.total / 1e9, whole.plain / 1e9) == pytest.approx(COUNTED[name], abs=0.01)
    assert sum(whole.blocks.values()) == whole.total
    assert sum(whole.plain_blocks.values()) == whole.plain


def test_costs_per_block() -> None:
    gmacs = {block: round(count / 1e9, 2) for block, count in macs(preset("sd15")).blocks.items()}
    assert gmacs.pop(OUTSIDE) == 0.10
    assert gmacs == pytest.approx(BLOCKS, abs=0.011)
    weight = {block: round(count / 1e6, 2) for block, count in parameters(preset("sd15")).items()}
    assert weight.pop(OUTSIDE) == pytest.approx(2.08, abs=0.015)
    assert weight == PARAMETERS


@pytest.mark.parametrize("model", tiny.SHAPES)
def test_a_live_unet_costs_what_its_config_says(model: str) -> None:
    """Fused attention on the CPU escapes torch's counter; it must not escape ours."""
    config = tiny.SHAPES[model]
    live = macs_of(tiny.unet(config), inputs(config, device="cpu"))
    assert live == macs(config)
    assert live.total > live.plain > 0


EMBEDDINGS: dict[str, dict[str, Any]] = {
    "classes by number": {"num_class_embeds": 7},
    "class timestep": {"class_embed_type": "timestep"},
    "class identity": {"class_embed_type": "identity"},
    "class identity, Fourier time": {"class_embed_type": "identity", "time_embedding_type": "fourier"},
    "class projection": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 12},
    "class simple projection": {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 12},
    "class beside the time": {"class_embed_type": "timestep", "class_embeddings_concat": True},
    "text": {"addition_embed_type": "text", "addition_embed_type_num_heads": 4},
    "text of DeepFloyd": {"addition_embed_type": "text", "addition_embed_type_num_heads": 4, "encoder_hid_dim": 12},
    "text and times of SDXL's refiner": {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 5 * 4
    },
    "text and image, as Kandinsky 2.1": {
        "addition_embed_type": "text_image", "encoder_hid_dim_type": "text_image_proj", "encoder_hid_dim": 12
    },
    "image, as Kandinsky 2.2": {
        "addition_embed_type": "image", "encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 12
    },
    "image and hint": {
        "addition_embed_type": "image_hint", "encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 12,
        "in_channels": 8
    },
    "projected text": {"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 12},
    "guidance": {"time_cond_proj_dim": 12},
    "boxes": {"attention_type": "gated"},
    "boxes with pictures": {"attention_type": "gated-text-image"},
}  # fmt: skip
"""Every embedding that UNet2DConditionModel knows."""


@pytest.mark.parametrize("changes", EMBEDDINGS.values(), ids=EMBEDDINGS)
def test_a_call_has_all_inputs_that_its_config_asks_for(changes: dict[str, Any]) -> None:
    config = tiny.shape("sd15", **changes)
    unet, arguments = tiny.unet(config), inputs(config, batch=2, device="cpu")
    output = unet(**arguments).sample
    assert output.shape == (2, 4, 8, 8)
    output.sum().backward()
    idle = [name for name, weight in unet.named_parameters() if weight.requires_grad and weight.grad is None]
    assert idle == []
    assert macs(config) == macs_of(unet, inputs(config, device="cpu"))


def test_what_cannot_be_called_is_told() -> None:
    config = tiny.shape("sd15", class_embeddings_concat=True)  # of classes that there are none of
    with pytest.raises(ModelError, match=r"a UNet of it cannot be called \(.*dim.*fetch the config again"):
        macs(config)


def test_a_shape_is_counted_once_wherever_it_was_read_from(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.shape("sd15", sample_size=4)
    counted = macs(config), dict(parameters(config)), dict(built_shapes(config))
    for each in (parameters(config), built_shapes(config)):
        each.clear()  # what one caller does with it is nothing to the others
    monkeypatch.setattr(flops, "meta_unet", lambda _: pytest.fail("counted again"))
    elsewhere = {**config, "_name_or_path": "elsewhere"}
    assert (macs(elsewhere), parameters(elsewhere), built_shapes(elsewhere)) == counted
    for of in (macs, parameters, built_shapes):
        with pytest.raises(pytest.fail.Exception, match="counted again"):
            of({**config, "layers_per_block": 1})


def test_a_config_that_diffusers_refuses_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="diffusers cannot build it"):
        meta_unet({**preset("sd15"), "norm_num_groups": 7})
