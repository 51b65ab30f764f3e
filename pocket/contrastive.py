"""Stages `clip` and `score`: a BPE vocabulary, and two small CLIPs. The text half of the first conditions the UNet; the
second has another seed and order of samples, and scores: a judge must not be what the pictures were made for."""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from asdm_cli.errors import RunError
from asdm_cli.training.loop import Noise
from pocket.drawings import Pairs, moved, to_unit

TOKENS, WIDTH, LAYERS, HEADS, VOCABULARY = 24, 128, 4, 4, 2048
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
"""What CLIP takes for a word: letters, single digits, runs of anything else."""


def train_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """CLIP's own scheme (byte-level BPE, lower case, word-end marks) with a vocabulary of these captions."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(sorted(captions), trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *dict.fromkeys("".join(pair) for pair in merges)]
    vocabulary = {word: index for index, word in enumerate([*words, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    half = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "projection_dim": WIDTH,
    }
    text = half | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = half | {"image_size": 64, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """-> ids [n, TOKENS], padded and cut exactly as the pipeline does it."""
    return tokenizer(captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").input_ids


class Contrast(nn.Module):
    """-> logits [n, n]: image rows, text columns, scaled by the learned temperature."""

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        out = self.clip(pixel_values=images, input_ids=ids)
        logits: Tensor = out.logits_per_image
        return logits.float()


class Contrasting:
    """CLIP's symmetric cross-entropy, on images that are mirrored, scaled and shifted at random. In one process only:
    every image is held against the captions of the whole batch."""

    def __init__(self, clip: CLIPModel, train: Pairs, held_out: Pairs, tokenizer: CLIPTokenizer, device: torch.device):
        self.module = Contrast(clip)
        self.images, self.ids = train.images.to(device), tokenize(tokenizer, train.captions).to(device)
        self.held_out = held_out.images.to(device), tokenize(tokenizer, held_out.captions).to(device)
        self.size = len(train)

    def losses(self, module: nn.Module, rows: Tensor, noise: Noise) -> dict[str, Tensor]:
        if noise.part.count > 1:
            raise RunError("an image is held against the captions of the whole batch: train this stage in one process")
        with torch.autocast(rows.device.type, enabled=False):
            images = moved(to_unit(self.images[rows]), noise, (0.75, 1.15), 0.12)
        logits = module(images, self.ids[rows])
        target = torch.arange(len(logits), device=logits.device)
        return {"contrastive": (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2}

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """Of the held-out images among their own captions."""
        logits = self.module(to_unit(self.held_out[0]), self.held_out[1])
        return {f"recall_at_{k}": recall(logits, k) for k in (1, 5)}


def recall(logits: Tensor, k: int) -> float:
    """Share of rows whose own column is among the k largest."""
    own = logits.diagonal()[:, None]
    return float(((logits > own).sum(1) < k).float().mean())
