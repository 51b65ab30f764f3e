"""LoRAs: low-rank changes of weights, which become W + scale · alpha / rank · up · down when a model is read.

So what is in memory is a model like any other, and whatever measures or patches models does it to this one. Files name
modules in several ways; each is found among the names that the model's own have in all of these, so none is taken
apart. Onto a pruned or assembled UNet they are put by what asdm.json says of where its tensors come from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from asdm_cli.console import note
from asdm_cli.errors import Faults, ModelError
from asdm_cli.models.directory import ADAPTER_CONFIG, UNET, Fused, ModelDirectory
from asdm_cli.models.formats import FLOATS
from asdm_cli.models.from_single_file import unpickled
from asdm_cli.models.metadata import UNET_CONFIG, UNITS, history, one_unet
from asdm_cli.models.single_file import clip_name, unet_names
from asdm_cli.models.write import component_files
from asdm_cli.recipe.redact import without_place
from asdm_cli.recipe.schema import local
from asdm_cli.recipe.verbs import Adapter
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import Config, stated
from asdm_cli.unet.shapes import tensor_shapes
from asdm_cli.unet.surgery import Graft, remove, with_depth
from asdm_cli.unet.weights import (
    DIFFUSERS_STEM,
    TRANSFORMERS_STEM,
    UNSAFE,
    as_it_is,
    read_headers,
    read_mapping,
    write_tensors,
)

HALVES = {
    ".lora_down.weight": ".lora_up.weight",  # kohya's trainer
    ".lora_A.weight": ".lora_B.weight",  # peft
    ".lora.down.weight": ".lora.up.weight",  # diffusers before it had peft
    "_lora.down.weight": "_lora.up.weight",
    ".lora_linear_layer.down.weight": ".lora_linear_layer.up.weight",
}
"""How the names of the two tensors of a change end, whoever wrote the file."""
ALPHA, PEFT = ".alpha", "lora_adapter_metadata"
"""Where the strength that a LoRA was trained with stands: a tensor beside the two, or settings in the file's header."""
OTHERS = {
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "lora_mid": "a LoRA of three tensors (CP)",
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "oft_": "an OFT",
}
"""A part of a tensor's name -> what such a file holds."""
TEXT = {"text_encoder": ("lora_te_", "lora_te1_"), "text_encoder_2": ("lora_te2_",)}
KOHYA = {UNET: ("lora_unet_",), **TEXT}
"""Component -> what kohya's names begin with, before those of the modules with underscores for dots."""
BEFORE_PEFT = (
    (re.compile(r"(attn\d)\.(to_[qkv]|to_out)(?:\.0)?$"), r"\1.processor.\2"),
    (re.compile(r"self_attn\.(q|k|v|out)_proj$"), r"self_attn.to_\1"),
)
"""What diffusers called the projections of attention."""
OF_PEFT = "base_model"
ALONE = ("", f"{OF_PEFT}.model.")
"""What names of a UNet's modules begin with where nothing says that it is the UNet's."""
SHOWN = 3
"""Names in a message."""
Place = tuple[str, str]
"""A component and a tensor of it."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class LowRank:
    """The change of one weight: `up` (out, rank) times `down` (rank, in), convolutions with their kernels, times
    `factor`."""

    down: Tensor
    up: Tensor
    factor: float

    def fits(self, shape: Sequence[int]) -> bool:
        return (self.up.shape[0], self.down[0].numel()) == (shape[0], prod(shape[1:]))

    def of(self, scale: float, shape: Sequence[int]) -> Tensor:
        return scale * self.factor * (self.up.flatten(1).float() @ self.down.flatten(1).float()).reshape(shape)


@dataclass(frozen=True)
class Ancestor:
    """A model that the UNet was made of, or itself; `places` are the UNet's tensors, by what they are called there."""

    name: str
    config: Config
    places: dict[str, list[str]]


@dataclass(frozen=True)
class Matched:
    """A file's changes by component and weight, by the names of `of`; `left_out` have no place in the model."""

    of: str
    changes: dict[str, dict[str, LowRank]]
    left_out: int


def adapted(directory: ModelDirectory, adapters: Sequence[Adapter]) -> ModelDirectory:
    """The same model with these in its weights whenever they are read; what they change, and what is left out, is
    noted. Raises ModelError with all that cannot be used."""
    one_unet(directory)
    found, faults = list[Fused](), Faults()
    for index, adapter in enumerate(adapters):
        with faults.at(f"adapters[{index}]"):
            path = local(adapter.path)
            matched = _match(directory, path, adapter.of)
            lost = f"; {matched.left_out} more are of what {directory.name} has not" if matched.left_out else ""
            count = sum(map(len, matched.changes.values()))
            name = f"{without_place(adapter.path)} × {adapter.scale:g}"
            told = f"{name} changes {count} weights{lost}"
            found.append(Fused(path, adapter.scale, matched.of, name, told))
            note(f"{directory.name}: {told}")
    faults.raise_all()
    source = " + ".join([directory.source, *(each.name for each in found)])
    return replace(directory, adapters=tuple(found), source=source)


def fuse(module: torch.nn.Module, directory: ModelDirectory, component: str) -> None:
    """Change a component that was just read."""
    changes = _changes(directory, component)
    for name, weight in module.named_parameters() if changes else ():
        if change := changes.get(_plain(component, name)):
            weight.data = change(weight.data)


def write_fused(directory: ModelDirectory, component: str, folder: Path) -> None:
    """A component's weights with the adapters in them, in the place of those that were carried to `folder`."""
    if not (changes := _changes(directory, component)):
        return
    pieces = {name: as_it_is(entry) for name, entry in read_headers(directory.weights(component)).tensors.items()}
    for name, piece in pieces.items():
        if change := changes.get(_plain(component, name)):
            as_bytes = partial(_bytes, change, getattr(torch, FLOATS[piece.dtype]), piece.shape)
            pieces[name] = replace(piece, change=as_bytes)
    for name in component_files(directory, component).values():
        if ".safetensors" in name:
            (folder / name).unlink()
    write_tensors(pieces, folder / f"{DIFFUSERS_STEM if component == UNET else TRANSFORMERS_STEM}.safetensors")


def fused_size(directory: ModelDirectory) -> int:
    """Bytes of the weights that `write_fused` writes anew."""
    components = [each for each in (UNET, *TEXT) if each in directory.components and _changes(directory, each)]
    return sum(read_headers(directory.weights(each)).size for each in components)


def _changes(directory: ModelDirectory, component: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """What becomes of each weight of a component."""
    found: dict[str, list[tuple[float, LowRank]]] = {}
    for each in directory.adapters:
        for name, change in _match(directory, each.path, each.of).changes.get(component, {}).items():
            found.setdefault(name, []).append((each.scale, change))
    return {name: partial(_changed, parts) for name, parts in found.items()}


def _changed(parts: Iterable[tuple[float, LowRank]], weight: Tensor) -> Tensor:
    return (weight.float() + sum(change.of(scale, weight.shape) for scale, change in parts)).to(weight.dtype)


def _bytes(change: Callable[[Tensor], Tensor], dtype: torch.dtype, shape: tuple[int, ...], held: bytes) -> bytes:
    new = change(torch.frombuffer(bytearray(held), dtype=dtype).reshape(shape))
    return new.flatten().view(torch.uint8).numpy().tobytes()


def _plain(component: str, name: str) -> str:
    """A tensor's name, whichever version of transformers wrote it."""
    return name if component == UNET else clip_name(name)


# --- the file ---


def _read(file: Path) -> dict[str, LowRank]:
    """Every change, by what the file calls the module. Raises ModelError."""
    modules = _modules(file)
    held, settings = load_file(file), _settings(file)
    if bad := next((name for name, tensor in held.items() if not tensor.float().isfinite().all()), None):
        raise ModelError(f"{file}: {bad} holds values that are no finite numbers; fetch or train the LoRA again")
    found: dict[str, LowRank] = {}
    for name, halves in modules.items():
        down, up = (held[each] for each in halves)
        rank = down.shape[0] if down.dim() > 1 else 0
        if not rank or up.numel() != up.shape[0] * rank:
            what = f"{name} is of {list(down.shape)} and {list(up.shape)}, which multiply to no weight"
            raise ModelError(f"{file}: {what}; fetch the file again")
        try:
            found[name] = LowRank(down, up, _factor(name, rank, held.get(name + ALPHA), settings))
        except (AttributeError, TypeError, ValueError, RuntimeError, re.error):  # a header may say anything
            raise ModelError(f"{file}: {name}: its alpha is no number; fetch the file again") from None
    return found


def _modules(file: Path) -> dict[str, tuple[str, str]]:
    """The names of both halves by the module's, from the header. Raises ModelError for what is not just a LoRA."""
    if file.is_dir():
        inside = next(iter(sorted(file.glob("*.safetensors"))), None)
        raise ModelError(f"{file}: is a directory; give the LoRA's file{f', as {inside}' if inside else ''}")
    if not file.is_file():
        raise ModelError(f"{file}: no such file; give a LoRA's .safetensors file")
    if file.suffix in UNSAFE:
        raise ModelError(unpickled(str(file), "the LoRA in it"))
    names = read_headers([file]).tensors.keys()
    for mark, what in OTHERS.items():
        if found := next((name for name in names if mark in name), None):
            way = "fuse it with the program that it comes from, and give the model that comes out as `model`"
            raise ModelError(f"{file}: holds {what} ({found}), and only plain LoRAs are read; {way}")
    ends = [(name, down) for name in names for down in HALVES if name.endswith(down)]
    modules = {name.removesuffix(down): (name, name.removesuffix(down) + HALVES[down]) for name, down in ends}
    if not modules:
        pairs = "lora_down and lora_up, or lora_A and lora_B"
        raise ModelError(f"{file}: holds no LoRA (tensors named {pairs}); a whole model is given as `model`")
    parts = {part for pair in modules.values() for part in pair}
    if odd := [name for name in sorted(parts ^ names) if name.removesuffix(ALPHA) not in modules]:
        what = f"holds {odd[0]}, which is no part of a LoRA" if odd[0] in names else f"lacks {odd[0]}"
        raise ModelError(f"{file}: {what}; fetch the file again, or one that is nothing but a LoRA")
    return modules


def _settings(file: Path) -> dict[str, Any]:
    """What peft was told in training, if the file says so; of files that peft itself wrote it stands beside them, and
    not to know it would be to guess how strong they are."""
    with safe_open(file, "pt") as opened:
        text = (opened.metadata() or {}).get(PEFT, "{}")
        alone = any(name.startswith(f"{OF_PEFT}.") for name in opened.keys())  # noqa: SIM118 - no mapping
    if alone:
        beside = file.with_name(ADAPTER_CONFIG)
        if not beside.is_file():
            raise ModelError(f"{file}: is as peft saves it, with its strength in {beside.name}; fetch that too")
        return {f"{OF_PEFT}.{key}": value for key, value in read_mapping(beside).items()}
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        raise ModelError(f"{file}: {PEFT} in its header cannot be read; fetch the file again") from None


def _factor(name: str, rank: int, alpha: Tensor | None, settings: Mapping[str, Any]) -> float:
    """Alpha / rank; 1 where nothing says it."""
    component, _, module = name.partition(".")
    said = settings.get(f"{component}.lora_alpha", rank) if alpha is None else alpha.item()
    for end, other in (settings.get(f"{component}.alpha_pattern") or {}).items():
        said = other if re.fullmatch(rf"(.*\.)?({end})", module) else said
    if not isfinite(float(said)):
        raise ValueError
    return float(said) / (rank**0.5 if settings.get(f"{component}.use_rslora") else rank)


# --- whose weights it changes ---


def _match(directory: ModelDirectory, file: Path, of: str | None) -> Matched:
    """By the names of that model among those that the UNet was made of which has a place for all that the file holds.
    Raises ModelError where there is none, and where several have and none is said to be the one."""
    held, config = _read(file), directory.config(UNET)
    lineage = _told_apart(_lineage(directory.name, stated(config), history(directory)))
    if of is not None and of not in (names := list(dict.fromkeys(each.name for each in lineage))):
        raise ModelError(f"{file}: of: {directory.name} was not made from {of!r}; say one of {', '.join(names)}")
    encoders = {each: _encoder(directory, each) for each in TEXT if each in directory.components}
    wanted = [name for name in held if directory.is_pipeline or not name.startswith(("text_encoder", "lora_te"))]
    fits: list[tuple[str, dict[Place, str]]] = []
    misfits: list[tuple[str, list[str]]] = []
    for each in (each for each in lineage if of in (None, each.name)):
        promised = {UNET: tensor_shapes(each.config), **encoders}
        known = {word: (part, name) for part in promised for word, name in _words(part, promised[part], each.config)}
        if wrong := list(_wrong({name: held[name] for name in wanted}, known, promised)):
            misfits.append((each.name, wrong))
            continue
        places = {
            (part, place): name
            for name, (part, tensor) in ((name, known[name]) for name in wanted)
            for place in (each.places.get(tensor, []) if part == UNET else [tensor])
        }
        if places not in [other for _, other in fits]:
            fits.append((each.name, places))
    if len(fits) > 1:
        names = [f"`of: {name}`" for name, _ in fits]
        what = "may be of several models, whose layers have other numbers"
        raise ModelError(f"{file}: {what}; say {' or '.join(names)} (typed: FILE:SCALE:{fits[-1][0]})")
    if not fits:
        name, wrong = min(misfits, key=lambda each: len(each[1]))
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        what = f"is no LoRA of {name}: {'; '.join(wrong[:SHOWN])}{more}"
        raise ModelError(f"{file}: {what}; give one that was trained on this model, or on what it was made from")
    ((name, places),) = fits
    own = {UNET: tensor_shapes(config), **encoders}
    if banks := [each for (part, place), each in places.items() if not held[each].fits(own[part][place])]:
        way = "fuse it before `asdm condconv-expand`"
        raise ModelError(f"{file}: {banks[0]} changes a convolution that has several experts here; {way}")
    if not places:
        raise ModelError(f"{file}: changes nothing that {directory.name} has; leave it out")
    changes: dict[str, dict[str, LowRank]] = {part: {} for part in own}
    for (part, place), module in places.items():
        changes[part][place] = held[module]
    return Matched(name, changes, len(held) - len({*places.values()}))


def _told_apart(lineage: Sequence[Ancestor]) -> list[Ancestor]:
    """Those of one name as git has it: NAME, and before it NAME~1, NAME~2."""
    found: list[Ancestor] = []
    for place, each in enumerate(lineage):
        later = [other.name for other in lineage[:place]].count(each.name)
        found.append(replace(each, name=f"{each.name}~{later}" if later else each.name))
    return found


def _wrong(
    held: Mapping[str, LowRank], known: Mapping[str, Place], promised: Mapping[str, Mapping[str, Shape]]
) -> Iterator[str]:
    for name, change in held.items():
        if name not in known:
            yield f"it has no {name}"
        elif not change.fits(shape := promised[known[name][0]][known[name][1]]):
            own = f"{shape[0]} × {prod(shape[1:])}"
            yield f"{name} is for {len(change.up)} × {change.down[0].numel()} weights, and it has {own} there"


def _words(component: str, tensors: Iterable[str], config: Config) -> Iterator[tuple[str, str]]:
    """All that files call the modules of weights, each with its tensor."""
    original = unet_names(config) if component == UNET else str
    for tensor in tensors:
        module, _, kind = tensor.rpartition(".")
        if kind != "weight":
            continue
        dotted = {module, *(now.sub(before, module) for now, before in BEFORE_PEFT)}
        if component in TEXT:  # transformers 5 calls them so
            dotted |= {each.removeprefix("text_model.") for each in dotted}
        yield from ((f"{component}.{each}", tensor) for each in dotted)
        yield from ((f"{prefix}{each}", tensor) for each in dotted for prefix in ALONE if component == UNET)
        for each in {module, (original(tensor) or tensor).removesuffix(".weight")}:
            yield from ((prefix + each.replace(".", "_"), tensor) for prefix in KOHYA[component])


def _encoder(directory: ModelDirectory, component: str) -> dict[str, Shape]:
    tensors = read_headers(directory.weights(component)).tensors
    return {clip_name(name): entry.shape for name, entry in tensors.items()}


def _lineage(name: str, config: Config, steps: Sequence[Mapping[str, Any]]) -> list[Ancestor]:
    """The UNet itself, then all that it was made from, by what asdm.json says of every pruning and assembly."""
    found = [Ancestor(name, config, {key: [key] for key in tensor_shapes(config)})]
    made = next((at for at in reversed(range(len(steps))) if steps[at].keys() & {"removed", "taken"}), None)
    if made is None:
        return found
    step = steps[made]
    donors = step.get("donors") or {"": {**step, "history": steps[:made]}}
    if not all(UNET_CONFIG in each for each in donors.values()) or ("taken" in step and UNITS not in step):
        what = f"its asdm.json is of an older asdm and lacks what it was made from; {step['verb']} it again"
        raise ModelError(f"{name}: {what}")
    if "removed" in step:
        graft = remove(step[UNET_CONFIG], step["removed"]).left
    else:
        sources = {new: (donor, old) for new, (donor, old) in step[UNITS].items()}
        graft = Graft(config, Anatomy.of(config), with_depth(config, sources), step["ends"], step["embeddings"])
    mapped = graft.key_map({donor: tensor_shapes(each[UNET_CONFIG]) for donor, each in donors.items()})
    for donor, about in donors.items():
        for older in _lineage(about["source"], about[UNET_CONFIG], about.get("history", [])):
            known = next((each for each in found if (each.name, each.config) == (older.name, older.config)), None)
            if known is None:
                found.append(known := Ancestor(older.name, older.config, {}))
            theirs = {key: there for there, keys in older.places.items() for key in keys}
            for new, (owner, old) in mapped.items():
                if owner == donor and old in theirs:
                    known.places.setdefault(theirs[old], []).append(new)
    return found
