"""What single files do not hold: configurations that give models of the published sizes, and CLIP's own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

from asdm_cli.models.families import configs, write_tokenizer

SIZES = {
    "sd15": {"vae": 83_653_863, "text_encoder": 123_060_480, "unet": 859_520_964},
    "sd21": {"vae": 83_653_863, "text_encoder": 340_387_840, "unet": 865_910_724},
    "sdxl": {
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "unet": 2_567_463_684,
    },
}
"""Parameters of what the families' authors published."""


@pytest.mark.parametrize("family", SIZES)
def test_configurations_give_models_of_the_published_sizes(family: str) -> None:
    held = configs(family)
    for component, count in SIZES[family].items():
        library, name = held["model_index.json"][component]
        kind: Any = getattr({"diffusers": diffusers, "transformers": transformers}[library], name)
        config = held[f"{component}/config.json"]
        with torch.device("meta"):
            model = kind.from_config(config) if library == "diffusers" else kind(kind.config_class(**config))
        assert sum(each.numel() for each in model.parameters()) == count, component


@pytest.mark.parametrize("family", SIZES)
def test_an_index_names_what_has_a_configuration(family: str, tmp_path: Path) -> None:
    held = configs(family)
    named = {name for name, entry in held["model_index.json"].items() if isinstance(entry, list) and entry[0]}
    assert named == {name.partition("/")[0] for name in held} - {"model_index.json"}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(held["scheduler/scheduler_config.json"]))
    scheduler = getattr(diffusers, held["model_index.json"]["scheduler"][1]).from_pretrained(tmp_path)
    assert 0.06 < 1 - scheduler.alphas_cumprod[-1] ** 0.5 < 1  # noise to the end, as all were trained


def test_the_words_are_clip_s_own(tmp_path: Path) -> None:
    """Numbers that OpenAI's tokenizer gives; the two families pad differently."""
    for family, pad in (("sd15", 49407), ("sd21", 0)):
        folder = tmp_path / family
        folder.mkdir()
        write_tokenizer(folder)
        (folder / "tokenizer_config.json").write_text(json.dumps(configs(family)["tokenizer/tokenizer_config.json"]))
        words = transformers.CLIPTokenizer.from_pretrained(folder)
        told = words("a photo of a cat", padding="max_length", max_length=10).input_ids
        assert told == [49406, 320, 1125, 539, 320, 2368, 49407, pad, pad, pad]
        assert (len(words), words.model_max_length) == (49408, 77)
        assert words("A Photo  of a CAT").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
        assert words.decode(words("naïve café, 42€ 🦊").input_ids, skip_special_tokens=True) == "naïve café , 4 2 € 🦊"
