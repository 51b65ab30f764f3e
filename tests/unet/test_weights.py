"""Weights on disk: headers read, broken files refused by name, bytes copied as they are."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from asdm_cli.errors import ModelError, RunError
from asdm_cli.unet import weights
from asdm_cli.unet.weights import WEIGHTS, copy_tensors, find_weights, open_checkpoint, require

TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(3, 2),
    "a.scale": torch.tensor(1.5, dtype=torch.bfloat16),
    "a.empty": torch.zeros(0, 4),
    "steps": torch.tensor([7, 8], dtype=torch.int64),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / WEIGHTS, metadata={"format": "pt"})
    return tmp_path


def shard(folder: Path) -> dict[str, Any]:
    """Two shards and their index."""
    names = {"one.safetensors": ["b.weight", "steps"], "two.safetensors": ["a.weight", "a.scale", "a.empty"]}
    for file, keys in names.items():
        save_file({key: TENSORS[key] for key in keys}, folder / file)
    index = {"metadata": {}, "weight_map": {key: file for file, keys in names.items() for key in keys}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    return index


def test_headers_tell_names_shapes_and_dtypes(folder: Path) -> None:
    found = {name: (entry.dtype, entry.shape) for name, entry in open_checkpoint(folder).tensors.items()}
    assert found == {
        "b.weight": ("F16", (2, 3)),
        "a.weight": ("F32", (3, 2)),
        "a.scale": ("BF16", ()),
        "a.empty": ("F32", (0, 4)),
        "steps": ("I64", (2,)),
    }


def test_a_header_is_read_anew_where_its_file_may_have_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, reads, opened = folder / WEIGHTS, list[Path](), weights.safe_open
    monkeypatch.setattr(weights, "safe_open", lambda path, **how: (reads.append(path), opened(path, **how))[1])

    def read() -> int:
        open_checkpoint(folder)
        return len(reads)

    monkeypatch.setattr(weights, "SETTLED_NS", 1 << 60)
    assert [read(), read()] == [1, 2], "just written: the clock may not have ticked since"
    monkeypatch.setattr(weights, "SETTLED_NS", 0)
    assert [read(), read()] == [3, 3]
    before = file.stat()
    file.write_bytes(file.read_bytes())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert [read(), read()] == [4, 4]


def _kernel(says: str) -> Callable[..., int]:
    """A kernel that copies two bytes at a time, and after some of them nothing more."""
    calls = count()

    def copy(source: int, into: int, size: int, offset: int) -> int:
        if next(calls) >= 5:
            if says == "nothing":
                return 0
            raise OSError(getattr(errno, says), says)
        return os.write(into, os.pread(source, min(2, size), offset))

    return copy


@pytest.fixture(params=["real", "none", "EXDEV", "EINVAL", "nothing"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the kernel does when it is asked to copy."""
    if request.param == "none":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif request.param != "real":
        monkeypatch.setattr(os, "copy_file_range", _kernel(request.param), raising=False)
    return str(request.param)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("sharded", [False, True])
def test_copies_bytes_under_new_names(tmp_path: Path, sharded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if sharded:
        shard(tmp_path)
    else:
        save_file(TENSORS, tmp_path / WEIGHTS)
    monkeypatch.setattr(weights, "CHUNK", 5)
    have = open_checkpoint(tmp_path).tensors
    copy_tensors({f"new.{name}": entry for name, entry in have.items()}, tmp_path / "out.safetensors")
    copied = load_file(tmp_path / "out.safetensors")
    assert copied.keys() == {f"new.{name}" for name in TENSORS}
    for name, tensor in TENSORS.items():
        assert copied[f"new.{name}"].dtype == tensor.dtype
        assert torch.equal(copied[f"new.{name}"], tensor)


def test_a_disk_that_is_full_is_not_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", _kernel("ENOSPC"), raising=False)
    with pytest.raises(RunError, match="ENOSPC"):
        copy_tensors(open_checkpoint(folder).tensors, folder / "out.safetensors")
    assert not (folder / "out.safetensors").exists()


@pytest.mark.usefixtures("kernel")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    save_file({f"t{i}": torch.rand(1 << 18) for i in range(16)}, tmp_path / WEIGHTS)
    have = open_checkpoint(tmp_path).tensors
    tracemalloc.start()
    copy_tensors({name: have[name] for name in sorted(have) if name != "t3"}, tmp_path / "out.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "out.safetensors").stat().st_size > 15 << 20
    assert peak < 3 * weights.CHUNK


@pytest.mark.usefixtures("kernel")
def test_a_source_that_ends_early_leaves_no_target(folder: Path) -> None:
    have = open_checkpoint(folder).tensors
    with (folder / WEIGHTS).open("r+b") as stream:
        stream.truncate(have["b.weight"].start)
    with pytest.raises(ModelError, match="ended early"):
        copy_tensors(have, folder / "out.safetensors")
    assert not (folder / "out.safetensors").exists()


def test_digest_is_of_the_headers(folder: Path) -> None:
    digest = open_checkpoint(folder).digest
    save_file({**TENSORS, "a.scale": torch.tensor(2.5, dtype=torch.bfloat16)}, folder / WEIGHTS, {"format": "pt"})
    assert open_checkpoint(folder).digest == digest
    save_file({**TENSORS, "more": torch.zeros(1)}, folder / WEIGHTS, {"format": "pt"})
    assert open_checkpoint(folder).digest != digest


def _header(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """A file whose header lies."""

    def lie(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return lie


def _offsets(name: str, begin: int, end: int) -> Callable[[bytes], bytes]:
    return _header(lambda header: header[name].update(data_offsets=[begin, end]))


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut off in the data": lambda data: data[:-10],
    "cut off in the header": lambda data: data[:40],
    "something behind": lambda data: data + b"rest",
    "huge header": lambda data: (1 << 60).to_bytes(8, "little") + data[8:],
    "header longer than the file": lambda data: (len(data)).to_bytes(8, "little") + data[8:],
    "no JSON": lambda data: data[:8] + b"?" * (len(data) - 8),
    "offset beyond the file": _offsets("a.weight", 1 << 40, (1 << 40) + 24),
    "overlapping ranges": _offsets("a.weight", 0, 24),
    "negative offset": _offsets("a.weight", -24, 0),
    "size that is not the shape's": _header(lambda header: header["a.weight"].update(shape=[3, 3])),
    "unknown dtype": _header(lambda header: header["a.weight"].update(dtype="F33")),
    "a pickle by another name": lambda _: b"\x80\x04\x95" + b"." * 100,
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_refused_by_name(folder: Path, fault: str) -> None:
    file = folder / WEIGHTS
    file.write_bytes(BROKEN[fault](file.read_bytes()))
    with pytest.raises(ModelError, match="not a whole safetensors file") as caught:
        open_checkpoint(folder)
    assert str(file) in str(caught.value)
    assert "fetch it again" in str(caught.value)


@pytest.mark.parametrize("name", ["../one.safetensors", "/etc/passwd", "..", "", "a/b.safetensors", 3, None])
def test_an_index_cannot_name_what_is_elsewhere(tmp_path: Path, name: object) -> None:
    index = shard(tmp_path)
    index["weight_map"]["steps"] = name
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="not the plain name of a file beside it"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": []}', "[" * 100_000])
def test_an_index_must_be_one(tmp_path: Path, text: str) -> None:
    (tmp_path / f"{WEIGHTS}.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"index\.json: "):
        open_checkpoint(tmp_path)


def test_shards_must_be_there_and_not_repeat_tensors(tmp_path: Path) -> None:
    shard(tmp_path)
    save_file({"steps": TENSORS["steps"]}, tmp_path / "two.safetensors")
    with pytest.raises(ModelError, match="holds steps, which one"):
        open_checkpoint(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(ModelError, match=r"two\.safetensors: this weights file is missing"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("linked", [WEIGHTS, "one.safetensors", f"{WEIGHTS}.index.json"])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path, linked: str) -> None:
    folder, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    shard(folder)
    save_file(TENSORS, elsewhere / WEIGHTS)
    (folder / (f"{WEIGHTS}.index.json" if linked == WEIGHTS else linked)).unlink()
    (folder / linked).symlink_to(elsewhere / WEIGHTS)
    with pytest.raises(ModelError, match="link that leaves") as caught:
        open_checkpoint(folder)
    assert "cp -rL" in str(caught.value)


def test_a_link_inside_the_model_is_followed(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    save_file(TENSORS, tmp_path / "weights")
    (tmp_path / "unet" / WEIGHTS).symlink_to("../weights")
    assert open_checkpoint(tmp_path / "unet", tmp_path).tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "pytorch_model.bin", "unet.ckpt", "model.pt"])
def test_pickled_weights_are_refused_with_the_way_to_convert(tmp_path: Path, name: str) -> None:
    torch.save(TENSORS, tmp_path / name)
    with pytest.raises(ModelError, match="can run code") as caught:
        open_checkpoint(tmp_path)
    assert name in str(caught.value)
    assert "save_pretrained(FOLDER, safe_serialization=True)" in str(caught.value)


def test_an_index_of_pickles_is_refused(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "pytorch_model-1.bin"}}
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="not a safetensors file"):
        open_checkpoint(tmp_path)


def test_an_empty_folder_and_one_with_too_much_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights"):
        open_checkpoint(tmp_path)
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=f"looks for {WEIGHTS}; rename it"):
        open_checkpoint(tmp_path)
    shard(tmp_path)
    save_file(TENSORS, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match="holds both"):
        open_checkpoint(tmp_path)


STEM, SHARDS = "diffusion_pytorch_model", "diffusion_pytorch_model.safetensors.index"
VARIANTS = {
    f"{STEM}.fp16.safetensors": "fp16",
    f"{STEM}.non_ema.safetensors": "non_ema",
    f"{STEM}.bf16.safetensors {STEM}.fp16.safetensors": "fp16",
    f"{STEM}.bf16.safetensors {STEM}.non_ema.safetensors": "bf16",
    f"{STEM}.fp16.safetensors {STEM}.safetensors": "",
    f"{SHARDS}.fp16.json one.safetensors": "fp16",
    f"{SHARDS}.json {STEM}.fp16.safetensors": "fp16",
    f"{SHARDS}.json one.safetensors {STEM}.fp16.safetensors": "",
    f"{SHARDS}.json": "one.safetensors: this weights file is missing",
    f"{SHARDS}.fp16.json {STEM}.fp16.safetensors one.safetensors": "holds both",
    f"{STEM}.ema.safetensors {STEM}.non_ema.safetensors": "holds the variants ema, non_ema; take away",
    "model.fp16.safetensors": "no weights",
}


@pytest.mark.parametrize("names", VARIANTS)
def test_which_of_several_variants_counts(names: str, tmp_path: Path) -> None:
    for name in names.split():
        text = json.dumps({"weight_map": {"a.weight": "one.safetensors"}}) if name.endswith(".json") else ""
        (tmp_path / name).write_text(text)
    if (told := VARIANTS[names]) in ("", "fp16", "bf16", "non_ema"):
        found = find_weights(tmp_path)
        assert found.variant == told
        assert {each.name for each in [*found.files, found.index] if each} <= set(names.split())
    else:
        with pytest.raises(ModelError, match=told):
            find_weights(tmp_path)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"a.weight": None}, "has no place"),
        ({"missing": (1,)}, "weights lack missing"),
        ({"a.weight": (2, 3)}, r"a\.weight has the shape \[3, 2\] where config\.json asks for \[2, 3\]"),
    ],
)
def test_weights_must_be_the_configs(folder: Path, change: dict[str, Any], fault: str) -> None:
    have = open_checkpoint(folder)
    promised = {name: entry.shape for name, entry in have.tensors.items()}
    require(have, promised, folder)
    promised = {name: shape for name, shape in {**promised, **change}.items() if shape is not None}
    with pytest.raises(ModelError, match=fault):
        require(have, promised, folder)


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["a.lora_A.default_0.weight", "a.base_layer.weight"], r"holds a LoRA .*pipe\.fuse_lora\(\) and"),
        (["a.processor.to_q_lora.down.weight"], r"holds a LoRA .*pipe\.unload_lora_weights\(\)"),
        (["a.attn2.processor.to_k_ip.0.weight"], r"holds an image-prompt adapter .*pipe\.unload_ip_adapter\(\)"),
        (["encoder_hid_proj.image_projection_layers.0.norm.bias"], "holds an image-prompt adapter"),
    ],
)
def test_what_lies_on_top_of_a_model_is_told_with_the_way_off(names: list[str], fault: str, tmp_path: Path) -> None:
    """As pipelines are saved with it in force: the names that diffusers and PEFT give."""
    save_file({name: TENSORS["a.weight"].clone() for name in names}, tmp_path / WEIGHTS)
    have = open_checkpoint(tmp_path)
    with pytest.raises(ModelError, match=fault + ".* and save it again"):
        require(have, {"a.weight": (3, 2)}, tmp_path)
    require(have, {name: entry.shape for name, entry in have.tensors.items()}, tmp_path)  # its own may be so called
