"""Stage 2: a BPE vocabulary, and a small CLIP whose text half conditions the UNet."""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from typing_extensions import override

from asdm_cli.pocket.pairs import Pairs, to_unit
from asdm_cli.training.order import Noise
from asdm_cli.training.plan import Task, Term

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

    def forward(self, pictures: Tensor, ids: Tensor) -> Tensor:
        out = self.clip(pixel_values=pictures, input_ids=ids)
        return out.logits_per_image


class ContrastiveTask(Task):
    """CLIP's symmetric cross-entropy; pictures are flipped, shifted and scaled at random."""

    def __init__(self, train: Pairs, held_out: Pairs, tokenizer: CLIPTokenizer):
        self.pictures, self.ids = train.pictures, tokenize(tokenizer, train.captions)
        self.held_out = held_out.pictures[:500], tokenize(tokenizer, held_out.captions[:500])
        self.size = len(train)

    def read(self, rows: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return augment(to_unit(self.pictures[rows]), noise), self.ids[rows]

    @override
    def losses(self, name: str, module: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Term]:
        logits = module(*batch).float()
        target = torch.arange(len(logits), device=logits.device)
        both = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        return {"contrastive": Term(both / 2)}

    @override
    def validate(self, name: str, module: nn.Module, step: int) -> dict[str, float]:
        logits = module(to_unit(self.held_out[0]), self.held_out[1])
        return {f"recall_at_{k}": recall(logits, k) for k in (1, 5)}


def augment(pictures: Tensor, noise: Noise) -> Tensor:
    """Random flip, scale 0.85..1.15 and shift up to 8 %, white outside; [n, 3, h, w] in -1..1."""
    n = len(pictures)
    flip = torch.where(noise.uniform() < 0.5, -1.0, 1.0)
    scale = 0.85 + 0.3 * noise.uniform()
    shift = 0.32 * noise.uniform(2) - 0.16
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = flip * scale, scale, shift
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures - 1, grid, align_corners=False) + 1


def recall(logits: Tensor, k: int) -> float:
    """Share of rows whose own column is among the k largest."""
    own = logits.diagonal()[:, None]
    return float(((logits > own).sum(1) < k).float().mean())
