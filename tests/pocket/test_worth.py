"""What blocks are worth: taken out for a moment, and back again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel

from pocket import worth
from pocket.denoiser import new_scheduler
from pocket.drawings import Pairs
from pocket.worth import blocks, output_errors, zeroed
from tests import tiny


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel.from_config(tiny.SHAPES["sd15"]).eval()


def call(unet: UNet2DConditionModel) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return unet(torch.randn(1, 4, 8, 8), 500, torch.randn(1, 3, tiny.WIDTH)).sample


def test_a_block_hands_on_nothing_and_is_there_again(unet: UNet2DConditionModel) -> None:
    whole = call(unet)
    for name, block in blocks(unet).items():
        with zeroed(block):
            without = call(unet)
        assert not torch.equal(without, whole), name
        assert torch.equal(call(unet), whole), name


def test_without_the_last_block_only_the_output_layers_are_left(unet: UNet2DConditionModel) -> None:
    with zeroed(blocks(unet)["up.3"]):
        without = call(unet)
    nothing = unet.conv_out(unet.conv_act(unet.conv_norm_out(torch.zeros(1, 8, 8, 8))))
    torch.testing.assert_close(without, nothing)


def test_errors_are_relative(unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents and text are made up; where blocks hand on what they always do, there is no error."""
    pairs = Pairs(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["a", "b"], [{}, {}])
    posterior = SimpleNamespace(latent_dist=SimpleNamespace(mean=torch.randn(2, 4, 8, 8)))
    vae = SimpleNamespace(encode=lambda _: posterior, config={"scaling_factor": 1.0})
    text = torch.randn(2, 3, tiny.WIDTH)
    pipe = SimpleNamespace(vae=vae, unet=unet, scheduler=new_scheduler(), encode_prompt=lambda *_a, **_k: (text, None))
    found = output_errors(pipe, pairs)
    assert list(found) == [*(f"down.{i}" for i in range(4)), "mid", *(f"up.{i}" for i in range(4))]
    assert all(len(errors) == len(worth.TIMES) and min(errors) > 0 for errors in found.values())
    monkeypatch.setattr(worth, "zeroed", lambda _block: zeroed(torch.nn.Identity()))
    assert {max(errors) for errors in output_errors(pipe, pairs).values()} == {0}
