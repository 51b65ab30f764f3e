"""Model directories gone wrong: one file of a tiny pipeline, changed in one of the ways that downloads, disks, hands
and ill will change them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = "diffusion_pytorch_model.safetensors"
UNET, CONFIG, INDEX = f"unet/{WEIGHTS}", "unet/config.json", "model_index.json"


@dataclass(frozen=True)
class Damage:
    """What becomes of the bytes of one file; None takes it away."""

    file: str
    change: Callable[[bytes], bytes | None]

    def do(self, model: Path, copy: Path) -> Path:
        """A copy of the model, hard links but for the file that this damages."""
        shutil.copytree(model, copy, copy_function=os.link)
        file = copy / self.file
        raw = self.change(file.read_bytes())
        file.unlink()
        if raw is not None:
            file.write_bytes(raw)
        return copy


def header(change: Callable[[dict[str, Any]], object], file: str = UNET) -> Damage:
    """Weights whose header lies."""

    def lie(raw: bytes) -> bytes:
        end = 8 + int.from_bytes(raw[:8], "little")
        held = json.loads(raw[8:end])
        change(held)
        text = json.dumps(held).encode()
        return len(text).to_bytes(8, "little") + text + raw[end:]

    return Damage(file, lie)


def tensor(**changes: Any) -> Damage:
    """Of the first tensor of the UNet."""
    return header(lambda held: held[_first(held)].update(changes))


def _first(held: dict[str, Any]) -> str:
    return next(name for name in held if held[name].get("data_offsets", [9])[0] == 0)


def _renamed(held: dict[str, Any]) -> None:
    held["conv_in.wait"] = held.pop("conv_in.weight")


def _exchanged(held: dict[str, Any]) -> None:
    """Two tensors of different shapes, each in the other's place."""
    held["conv_in.weight"], held["conv_out.weight"] = held["conv_out.weight"], held["conv_in.weight"]


def _twice(raw: bytes) -> bytes:
    """A tensor whose name stands twice in the header."""
    end = 8 + int.from_bytes(raw[:8], "little")
    held = json.loads(raw[8:end])
    name = _first(held)
    text = (json.dumps(held)[:-1] + f", {json.dumps(name)}: {json.dumps(held[name])}" + "}").encode()
    return len(text).to_bytes(8, "little") + text + raw[end:]


def _length(number: int) -> Callable[[bytes], bytes]:
    return lambda raw: number.to_bytes(8, "little") + raw[8:]


def weights(file: str = UNET) -> dict[str, Damage]:
    return {
        "empty": Damage(file, lambda _: b""),
        "gone": Damage(file, lambda _: None),
        "cut in the length": Damage(file, lambda raw: raw[:5]),
        "cut in the header": Damage(file, lambda raw: raw[:100]),
        "cut in the data": Damage(file, lambda raw: raw[:-10]),
        "something behind": Damage(file, lambda raw: raw + b"\0" * 8),
        "header longer than the file": Damage(file, lambda raw: _length(len(raw))(raw)),
        "header of no length": Damage(file, _length(0)),
        "header of 2^63 bytes": Damage(file, _length(1 << 63)),
        "header of -1 bytes": Damage(file, _length((1 << 64) - 1)),
        "header no JSON": Damage(file, lambda raw: raw[:8] + b"?" * (len(raw) - 8)),
        "header no UTF-8": Damage(file, lambda raw: raw[:10] + b"\xff\xfe" + raw[12:]),
        "a picture": Damage(file, lambda _: b"\x89PNG\r\n\x1a\n" * 100),
        "a pickle": Damage(file, lambda _: b"\x80\x04\x95" + b"." * 100),
        "a page of a web server": Damage(file, lambda _: b"<!DOCTYPE html><title>404</title>"),
        "a pointer to large files": Damage(file, lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
    }


HEADERS = {
    "range beyond the file": tensor(data_offsets=[1 << 40, (1 << 40) + 4]),
    "range backwards": tensor(data_offsets=[400, 0]),
    "negative range": tensor(data_offsets=[-8, 0]),
    "range of one number": tensor(data_offsets=[0]),
    "range in words": tensor(data_offsets=["0", "4"]),
    "ranges overlap": tensor(data_offsets=[0, 4]),
    "unknown number format": tensor(dtype="F33"),
    "another number format": tensor(dtype="F16"),
    "number format no word": tensor(dtype=3),
    "shape of another size": tensor(shape=[3, 3]),
    "shape no list": tensor(shape="8"),
    "negative shape": tensor(shape=[-1]),
    "huge shape": tensor(shape=[1 << 62, 4]),
    "name twice": Damage(UNET, _twice),
    "a tensor's name changed": header(_renamed),
    "tensors in each other's place": header(_exchanged),
    "a tensor is a list": header(lambda held: held.update({_first(held): []})),
    "no tensors": Damage(UNET, lambda _: (2).to_bytes(8, "little") + b"{}"),
}


def config(file: str, **changes: Any) -> Damage:
    return Damage(file, lambda raw: json.dumps({**json.loads(raw), **changes}).encode())


def without(file: str, key: str) -> Damage:
    return Damage(file, lambda raw: json.dumps({k: v for k, v in json.loads(raw).items() if k != key}).encode())


def texts(file: str) -> dict[str, Damage]:
    """Files that are not the JSON that they should be."""
    return {
        "empty": Damage(file, lambda _: b""),
        "gone": Damage(file, lambda _: None),
        "cut": Damage(file, lambda raw: raw[:-20]),
        "NULs": Damage(file, lambda raw: b"\0" * len(raw)),
        "no UTF-8": Damage(file, lambda raw: raw.replace(b'"', b"\xff")),
        "a list": Damage(file, lambda _: b"[1, 2]"),
        "a number": Damage(file, lambda _: b"1"),
        "nothing": Damage(file, lambda _: b"null"),
        "deep": Damage(file, lambda _: b"[" * 100_000),
        "a page of a web server": Damage(file, lambda _: b"<!DOCTYPE html><title>404</title>"),
    }


SETTINGS = {
    "no keys": Damage(CONFIG, lambda _: b"{}"),
    "other class": config(CONFIG, _class_name="AutoencoderKL"),
    "class no word": config(CONFIG, _class_name=["UNet2DConditionModel"]),
    "negative channels": config(CONFIG, block_out_channels=[-8, 16, 32, 32]),
    "no channels": config(CONFIG, block_out_channels=[]),
    "channels of one number": config(CONFIG, block_out_channels=8),
    "channels in words": config(CONFIG, block_out_channels=["8", "16", "32", "32"]),
    "channels a mapping": config(CONFIG, block_out_channels={"8": 16}),
    "10^9 channels": config(CONFIG, block_out_channels=[10**9] * 4),
    "10^30 channels": config(CONFIG, block_out_channels=[10**30] * 4),
    "half channels": config(CONFIG, block_out_channels=[8.5, 16, 32, 32]),
    "too few levels": config(CONFIG, block_out_channels=[8, 16]),
    "10^9 layers": config(CONFIG, layers_per_block=10**9),
    "no layers": config(CONFIG, layers_per_block=0),
    "layers nothing": config(CONFIG, layers_per_block=None),
    "unknown block": config(CONFIG, down_block_types=["MyBlock2D"] * 4),
    "blocks no list": config(CONFIG, down_block_types="CrossAttnDownBlock2D"),
    "blocks of lists": config(CONFIG, down_block_types=[["DownBlock2D"]] * 4),
    "blocks nothing": config(CONFIG, up_block_types=None),
    "mid block a list": config(CONFIG, mid_block_type=["UNetMidBlock2DCrossAttn"]),
    "no heads": config(CONFIG, attention_head_dim=0),
    "heads not a number": config(CONFIG, attention_head_dim=float("nan")),
    "text width negative": config(CONFIG, cross_attention_dim=-16),
    "text width nothing": config(CONFIG, cross_attention_dim=None),
    "text width other": config(CONFIG, cross_attention_dim=32),
    "no input channels": config(CONFIG, in_channels=0),
    "input channels in words": config(CONFIG, in_channels="four"),
    "groups that do not divide": config(CONFIG, norm_num_groups=7),
    "no groups": config(CONFIG, norm_num_groups=0),
    "depths negative": config(CONFIG, transformer_layers_per_block=-1),
    "10^8 depths": config(CONFIG, transformer_layers_per_block=10**8),
    "depths in words": config(CONFIG, transformer_layers_per_block="one"),
    "unknown activation": config(CONFIG, act_fn="sillu"),
    "unknown time embedding": config(CONFIG, time_embedding_type="stars"),
    "size in words": config(CONFIG, sample_size="large"),
    "size negative": config(CONFIG, sample_size=-8),
}
INDICES = {
    "no class": without(INDEX, "_class_name"),
    "unknown pipeline": config(INDEX, _class_name="MyPipeline"),
    "no UNet": without(INDEX, "unet"),
    "UNet of code": config(INDEX, unet=["my_module", "MyUNet"]),
    "UNet of another class": config(INDEX, unet=["diffusers", "AutoencoderKL"]),
    "component elsewhere": config(INDEX, **{"../../x": ["diffusers", "AutoencoderKL"]}),
    "component not there": config(INDEX, image_encoder=["transformers", "CLIPVisionModel"]),
}
FOR_ALL: dict[str, Damage] = {
    **{f"weights: {name}": damage for name, damage in weights().items()},
    **{f"weights: {name}": damage for name, damage in HEADERS.items()},
    **{f"config: {name}": damage for name, damage in texts(CONFIG).items()},
    **{f"config: {name}": damage for name, damage in SETTINGS.items()},
    **{f"index: {name}": damage for name, damage in texts(INDEX).items() if name != "gone"},
    **{f"index: {name}": damage for name, damage in INDICES.items()},
}
"""What every verb looks at."""
VAE, TEXT, SCHEDULER, WORDS = (
    "vae",
    "text_encoder",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
)
FOR_PICTURES: dict[str, Damage] = {
    **{f"VAE weights: {name}": damage for name, damage in weights(f"{VAE}/{WEIGHTS}").items()},
    **{f"VAE config: {name}": damage for name, damage in texts(f"{VAE}/config.json").items()},
    "VAE config: no channels": config(f"{VAE}/config.json", block_out_channels=[]),
    "VAE config: channels other": config(f"{VAE}/config.json", block_out_channels=[8, 8, 8]),
    "VAE config: channels in words": config(f"{VAE}/config.json", block_out_channels="8"),
    "VAE config: other latents": config(f"{VAE}/config.json", latent_channels=16),
    **{f"text encoder weights: {name}": damage for name, damage in weights(f"{TEXT}/model.safetensors").items()},
    **{f"text encoder config: {name}": damage for name, damage in texts(f"{TEXT}/config.json").items()},
    "text encoder config: tokens in words": config(f"{TEXT}/config.json", max_position_embeddings="many"),
    "text encoder config: another width": config(f"{TEXT}/config.json", hidden_size=24),
    **{f"scheduler: {name}": damage for name, damage in texts(SCHEDULER).items()},
    "scheduler: no timesteps": config(SCHEDULER, num_train_timesteps=0),
    "scheduler: betas in words": config(SCHEDULER, beta_start="small"),
    "scheduler: unknown betas": config(SCHEDULER, beta_schedule="stars"),
    "scheduler: unknown prediction": config(SCHEDULER, prediction_type="stars"),
    **{f"tokenizer: {name}": damage for name, damage in texts(WORDS).items()},
    **{f"words: {name}": damage for name, damage in texts("tokenizer/tokenizer.json").items()},
}
"""What verbs look at that draw."""
