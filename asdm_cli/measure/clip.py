"""A CLIP's opinion of pictures and prompts.

torchmetrics' CLIPScore takes hub names and the processors of older transformers; the cosine is all that is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asdm_cli.measure.pictures import PictureSet
from asdm_cli.measure.resize import resized
from asdm_cli.models.load import Clip


@torch.inference_mode()
def picture_embeddings(clip: Clip, pictures: PictureSet) -> Tensor:
    """[n, d] on the CPU, not normalised."""
    batches = (batch.to(clip.model.device) for batch in pictures.batches())
    return torch.cat([image_embeddings(clip, batch).float().cpu() for batch in batches])


def image_embeddings(clip: Clip, pictures: Tensor) -> Tensor:
    """uint8 [n, 3, h, w] -> [n, d], not normalised."""
    mean, std = (torch.tensor(values, device=pictures.device)[:, None, None] for values in (clip.mean, clip.std))
    pixels = (resized(pictures, clip.size) - mean) / std
    return clip.model.get_image_features(pixel_values=pixels).pooler_output


@torch.inference_mode()
def text_embeddings(clip: Clip, prompts: list[str]) -> Tensor:
    """[n, d] on the CPU, not normalised; prompts are padded and cut as the pipeline does it."""
    limit = clip.model.config.text_config.max_position_embeddings
    embeddings = []
    for start in range(0, len(prompts), 256):
        tokens = clip.tokenizer(
            prompts[start : start + 256], padding="max_length", truncation=True, max_length=limit, return_tensors="pt"
        )
        ids = tokens.input_ids.to(clip.model.device)
        embeddings.append(clip.model.get_text_features(input_ids=ids).pooler_output.float().cpu())
    return torch.cat(embeddings)
