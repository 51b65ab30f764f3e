"""Which files hold a component's weights: found by name, kept inside their folder, safetensors or nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from stat import S_ISREG
from typing import Any

from asdm_cli.errors import ModelError

DIFFUSERS_STEM, TRANSFORMERS_STEM = STEMS = ("diffusion_pytorch_model", "model")
"""What each library calls its weights; neither reads the other's."""
UNSAFE = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
LARGEST_TEXT = 1 << 26
"""Bytes of a file that is read as a whole; the largest vocabularies have half of that."""
SNAPSHOTS, BLOBS = "snapshots", "blobs"
"""Folders of the hub's cache: a model's files are links from the first into the second."""
CONVERT = (
    "convert it once, where you trust it: load it with diffusers or transformers and call "
    "save_pretrained(FOLDER, safe_serialization=True)"
)


def read_json(file: Path) -> Any:
    """The file's JSON value; ModelError where it cannot be read or parsed."""
    try:
        return json.loads(check_text(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{file}: no such file; is this a diffusers model directory?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: cannot be read as JSON ({error}); fetch or write the file again") from None


def check_text(file: Path) -> Path:
    """The file, if it may be read as a whole: to open a pipe waits for ever, and a device never ends. ModelError for
    others; raises OSError where there is none."""
    about = file.stat()
    if not S_ISREG(about.st_mode):
        raise ModelError(f"{file}: is no regular file; fetch or write it again")
    if about.st_size > LARGEST_TEXT:
        size = f"{about.st_size:,} bytes, more than {LARGEST_TEXT >> 20} MiB"
        raise ModelError(f"{file}: has {size}, so it is no configuration or vocabulary; fetch or write it again")
    return file


def read_mapping(file: Path) -> dict[str, Any]:
    """Like `read_json`, for files that must hold an object."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise ModelError(f"{file}: holds a {type(value).__name__} where an object is expected; fetch the file again")
    return value


def inside(root: Path, path: Path) -> Path:
    """`path`, if its links stay inside `root`, or lead to the `blobs` of the hub's cache that `root` is a snapshot in;
    ModelError otherwise."""
    try:
        real, home = path.resolve(), root.resolve()
    except (OSError, RuntimeError):  # which of the two it is depends on Python's version
        raise ModelError(f"{path}: is a link that leads round in a circle; fetch the file again") from None
    cached = home.parent.name == SNAPSHOTS and real.is_relative_to(home.parent.parent / BLOBS)
    if cached or real.is_relative_to(home):
        return path
    raise ModelError(
        f"{path}: is a link that leaves {root}; copy the model with its links resolved (cp -rL SOURCE TARGET) "
        "and use the copy"
    )


def plain_name(name: object, file: Path) -> str:
    """`name`, if it names something directly inside a folder: no separator, no `..`, not absolute."""
    if isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0"):
        return name
    raise ModelError(f"{file}: {name!r} is not the plain name of a file beside it; correct the entry")


def weight_files(folder: Path, root: Path | None = None, stem: str = DIFFUSERS_STEM) -> list[Path]:
    """The safetensors files of one component, in order: one file, or the shards that its index names.

    Nothing outside `root` (default: `folder`) is accepted, whatever links or index entries say.
    """
    root = root or folder
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    alone = single.is_symlink() or single.is_file()
    if alone and index.is_file():
        raise ModelError(f"{folder}: holds both {single.name} and {index.name}; take away the one that does not count")
    if alone:
        return [_regular(root, single)]
    if index.is_file():
        return _shards(root, inside(root, index))
    raise ModelError(_why_no_weights(folder, root, stem))


def _shards(root: Path, index: Path) -> list[Path]:
    weight_map = read_mapping(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: has no `weight_map`; fetch the file again")
    names = sorted({plain_name(name, index) for name in weight_map.values()})
    unsafe = [name for name in names if not name.endswith(".safetensors")]
    if unsafe:
        raise ModelError(f"{index}: names {unsafe[0]!r}, which is not a safetensors file; {CONVERT}")
    return [_regular(root, index.parent / name) for name in names]


def _regular(root: Path, file: Path) -> Path:
    if inside(root, file).is_file():
        return file
    raise ModelError(f"{file}: this weights file is missing; fetch it again")


def _why_no_weights(folder: Path, root: Path, stem: str) -> str:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    unsafe = [file for file in files if file.suffix in UNSAFE]
    if unsafe:
        return f"{unsafe[0]}: pickled weights are not read, because loading them can run code; {CONVERT}"
    safe = [file for file in files if file.suffix == ".safetensors"]
    plain = [file for file in safe if file.stem in STEMS]
    if plain:
        return f"{plain[0]}: the library that loads this component looks for {stem}.safetensors; rename it"
    number = r"(?:-\d+-of-\d+)?"
    named = (re.fullmatch(rf"{stem}{number}\.(\w+){number}\.safetensors", file.name) for file in safe)
    variants = [found[1] for found in named if found]
    if variants:
        kind = "UNet2DConditionModel" if folder == root else "DiffusionPipeline"
        return (
            f"{folder}: only the variant {variants[0]!r} is there; write the whole model once without it, in Python: "
            f"diffusers.{kind}.from_pretrained({str(root)!r}, variant={variants[0]!r}, use_safetensors=True, "
            "dtype=torch.float16).save_pretrained(FOLDER)"
        )
    return f"{folder}: no weights (looked for {stem}.safetensors and its shards); fetch them"
