"""The mathematics of the three stages, each against someone else's code or its own inverse."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from asdm_cli.pocket import autoencoder, contrastive, denoiser, stages
from asdm_cli.pocket.pairs import to_unit
from asdm_cli.training.order import Noise, Part


def test_the_scheduler_ends_in_pure_noise():
    scheduler = denoiser.new_scheduler()
    scheduler.set_timesteps(25)
    assert scheduler.alphas_cumprod[-1] == 0
    assert scheduler.timesteps[0] == 999


def test_standardise_keeps_the_function_and_gives_unit_latents():
    torch.manual_seed(0)
    vae = AutoencoderKL(**autoencoder.CONFIG)
    pictures = torch.randint(0, 255, (8, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        before = vae.decode(vae.encode(to_unit(pictures)).latent_dist.mean).sample
        autoencoder.standardise(vae, pictures)
        latents = vae.encode(to_unit(pictures)).latent_dist.mean
        after = vae.decode(latents).sample
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(8), atol=1e-4, rtol=0)


def test_recall_on_a_hand_made_matrix():
    logits = torch.tensor([[3.0, 1, 2], [5, 4, 0], [9, 8, 7]])
    assert contrastive.recall(logits, 1) == pytest.approx(1 / 3)
    assert contrastive.recall(logits, 2) == pytest.approx(2 / 3)
    assert contrastive.recall(logits, 3) == 1


def test_augmenting_keeps_white_white():
    white = torch.ones(5, 3, 64, 64)
    torch.testing.assert_close(contrastive.augment(white, Noise(0, 0, Part(5))), white)


def test_the_tokenizer_is_a_clip_tokenizer_that_survives_saving(tmp_path):
    captions = [f"{colour} {thing}, noto style" for colour in ("red", "blue") for thing in ("fox", "owl", "house")]
    tokenizer = contrastive.train_tokenizer(captions)
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    for caption in [*captions, "An unseen word 7's!", ""]:
        ids = contrastive.tokenize(tokenizer, [caption])
        assert torch.equal(ids, contrastive.tokenize(again, [caption]))
        assert ids.shape == (1, contrastive.TOKENS)
        assert tokenizer.decode(ids[0], skip_special_tokens=True).replace(" ", "") == caption.lower().replace(" ", "")
    whole_words = tokenizer.tokenize("red fox, noto style")
    assert whole_words == ["red</w>", "fox</w>", ",</w>", "noto</w>", "style</w>"]


def test_the_text_encoder_follows_the_clip_it_came_from():
    tokenizer = contrastive.train_tokenizer(["red fox, noto style"])
    clip = contrastive.new_clip(tokenizer).eval()
    encoder = stages._text_half(clip)
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.mul_(1.5)
        ids = contrastive.tokenize(tokenizer, ["red fox"])
        assert torch.equal(encoder(ids).last_hidden_state, clip.text_model(ids).last_hidden_state)
