"""asdm.json beside a model's index: which verbs made it, from what, and the patches in force
whenever it draws, read and written here alone. And what unfinished work was made from, by which it is gone on with.

Several UNets that take turns lie beside each other: the first is the pipeline's `unet/`, each other one lies in
`unets/NAME/`. Stock diffusers sees a plain model of the first. No torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from asdm_cli import __version__
from asdm_cli.console import note, track
from asdm_cli.errors import Faults, ModelError, RunError
from asdm_cli.models.directory import (
    ADAPTER_CONFIG,
    BESIDE_FILE,
    BESIDE_VAE,
    INDEX,
    UNET,
    UNETS,
    ModelDirectory,
    check_unet,
    find,
)
from asdm_cli.models.sources import names_directory
from asdm_cli.models.write import WEIGHT_FILE, assemble_directory, carry_component, component_files, write_json
from asdm_cli.recipe.messages import validated
from asdm_cli.recipe.patches import AnyPatch, PatchSpec, UNetScheduleSpec
from asdm_cli.recipe.schema import Strict, places
from asdm_cli.unet.weights import Checkpoint, inside, open_checkpoint, read_mapping

FILE = "asdm.json"
ORIGIN = "origin.json"
OLD = {"inherit": "asdm inherit", "switch": "asdm switch"}
"""Keys of 0.1, and what writes such a model anew."""
UNET_CONFIG, UNITS = "unet_config", "units"
"""Of a step: the config of the UNet that tensors were taken from, and unit of the result -> donor and unit there."""
Origin = dict[str, Any]
"""All that images or weights depend on, as JSON: work of another origin is not gone on with."""
Stamps = list[list[str | int]]
"""Name and bytes of each file, and its contents' digest, or the time of one too large to be read for that."""
SMALL = 64 * 1024
"""Bytes of a file that is told by its contents: a fresh checkout has the same prompts and recipes at another time."""


class Step(BaseModel, extra="allow"):
    """What one verb did; each adds what it likes to tell. After what was `removed`, addresses are others."""

    verb: str
    removed: list[str] | None = None
    """Addresses that a pruning took away; `unet_config` is what they are addresses of."""
    unet_config: dict[str, Any] | None = None
    units: dict[str, tuple[str, str]] | None = None
    taken: dict[str, list[str]] | None = None
    """Donor -> addresses, and names of modules outside the blocks, that an assembly took from it."""


class Metadata(Strict):
    """asdm.json. What a key says counts whenever the model draws, so an unknown one is refused, never drawn without."""

    history: list[Step] = Field(default_factory=list)
    """What was done to the model, oldest first."""
    patches: list[AnyPatch] = Field(default_factory=list)
    """What is in force whenever it draws."""


def read_metadata(directory: ModelDirectory) -> Metadata:
    """Raises RecipeError with all faults of the file, or ModelError."""
    file = directory.path / FILE
    if not (file.exists() or file.is_symlink()):
        return Metadata()
    held = read_mapping(inside(directory.path, file))
    if old := [key for key in OLD if key in held]:
        ways = " and ".join(f"`{OLD[key]}`" for key in old)
        raise ModelError(f"{file}: is of asdm 0.1 ({', '.join(old)}); write the model again with {ways}")
    read: Metadata = validated(Metadata, held, str(file))
    return read


def history(directory: ModelDirectory) -> list[dict[str, Any]]:
    """What was done to this model, oldest first; nothing for models that did not come from here."""
    return [step.model_dump(exclude_unset=True) for step in read_metadata(directory).history]


def measured_with(directory: ModelDirectory) -> dict[str, Any]:
    """Sampler, steps and guidance of the last verb that measured the model; nothing if none did."""
    for step in reversed(read_metadata(directory).history):
        if found := (step.model_extra or {}).get("measured_with"):
            return dict(found)
    return {}


def taken(directory: ModelDirectory) -> dict[str, list[str]]:
    """What an assembly took from which donor; nothing for models that were not assembled, or whose blocks were
    renumbered since."""
    for step in reversed(read_metadata(directory).history):
        if step.taken is not None:
            return step.taken
        if step.removed is not None:
            break
    return {}


def record(source: ModelDirectory, target: Path, verb: str, patches: Sequence[PatchSpec] = (), **facts: Any) -> None:
    """Write `target`'s history: that of its source, then this verb. Names only: paths say nothing elsewhere.

    Patches of the source are not handed on, and that is said: another UNet has other addresses.
    """
    revision = {"revision": source.revision} if source.revision else {}
    step = Step(verb=verb, asdm=__version__, source=source.name, **revision, **facts)
    before = read_metadata(source)
    steps = [each.model_dump(mode="json", exclude_unset=True) for each in (*before.history, step)]
    if before.patches and not patches and verb != "export":  # which says it itself
        kinds = ", ".join(dict.fromkeys(spec.kind for spec in before.patches))
        note(f"{source.name} carries {kinds}, which the changed UNet does not: put a plan on it by asdm inherit")
    held: dict[str, Any] = {"history": steps}
    if patches:
        held["patches"] = [spec.written() for spec in patches]
    text = json.dumps(held, indent=2, ensure_ascii=False)
    (target / FILE).write_text(f"{text}\n", encoding="utf-8")


def stamps(directory: ModelDirectory, whole: bool = False) -> Stamps:
    """Of every file of a model: changed weights, or another plan, are noticed without reading gigabytes; or by these,
    where it is `whole`, and a copy at another time is the same."""
    files = [file for folder in directory.components.values() for file in folder.rglob("*")]
    adapters = [each.path for each in directory.adapters]
    return stamps_of(directory.path, [*files, directory.path / FILE, directory.path / INDEX, *adapters], whole)


def stamps_of(root: Path, paths: Iterable[Path], whole: bool = False) -> Stamps:
    """Of each of these that is a file."""
    files = sorted(file for file in paths if file.is_file())
    each = track(files, f"reading {root.name}", len(files)) if whole else files
    return [[os.path.relpath(file, root), *_stamp(file, whole)] for file in each]


def _stamp(file: Path, whole: bool) -> list[str | int]:
    about = file.stat()
    if not os.access(file, os.R_OK) or (about.st_size > SMALL and not whole):  # who reads it says that one cannot
        return [about.st_size, about.st_mtime_ns]
    with file.open("rb") as opened:
        return [about.st_size, hashlib.file_digest(opened, "sha256").hexdigest()]


def made_from(texts: Iterable[str], whole: bool = False) -> Origin:
    """Stamps of the models (see there what `whole` is) and files that a recipe's texts name; nothing of URLs, and of
    words for bundled files."""
    found: Origin = {}
    for text in texts:
        try:
            known = stamps(find(text), whole) if names_directory(text) else stamps_of(Path(), read_with(places(text)))
        except ModelError:  # no model: somebody else says so, or knows what it is
            continue
        found |= {text: known} if known else {}
    return found


def read_with(files: Iterable[Path]) -> list[Path]:
    """These, and what single files among them are read with: an original configuration, those of an export, a VAE, the
    settings of a LoRA."""
    found = list(files)
    for file in [each for each in found if each.suffix == WEIGHT_FILE and each.is_file()]:
        found += [*map(file.with_suffix, (".yaml", BESIDE_VAE)), file.with_name(ADAPTER_CONFIG)]
        found += (file.parent / BESIDE_FILE).rglob("*")
    return found


def refuse_changes(before: Origin, now: Origin) -> None:
    """RunError for what was changed while it was read: who read it early and who read it late would not agree."""
    if changed := [key for key in before if before[key] != now.get(key)]:
        raise RunError(f"{', '.join(changed)}: was changed while this ran; put it back, or give the same command again")


def claim(folder: Path, origin: Origin, dear: bool = False) -> None:
    """Make `folder` a place for work of this origin: work of another one goes away. What is too `dear` for that stays,
    and there is a ModelError with the keys that differ."""
    file, wanted = folder / ORIGIN, json.loads(json.dumps(origin))  # as it is read back: tuples are lists
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or a run was killed before it did anything
        held = None
    if held == wanted:
        return
    if dear and held is not None:
        changed = ", ".join(key for key in {**held, **wanted} if held.get(key) != wanted.get(key))
        raise ModelError(
            f"{folder}: was begun with other files than there are now (changed since: {changed}). Put those "
            f"back, and the same command goes on; or remove {folder.parent}, and it starts afresh"
        )
    if not dear:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, wanted)


# --- what a model carries into drawing ---


def patches_of(directory: ModelDirectory) -> tuple[PatchSpec, ...]:
    """What a model carries, from small files alone. Raises RecipeError or ModelError, with the file, for what is
    damaged, does not fit, or does not belong together."""
    file = directory.path / FILE
    specs = tuple(read_metadata(directory).patches)
    found = {name.removeprefix(f"{UNETS}/") for name in directory.components if name.startswith(f"{UNETS}/")}
    schedule = schedule_of(specs)
    named = set(schedule.unets[1:]) if schedule else set()
    if found and not schedule:
        names = ", ".join(sorted(found))
        what = f"holds UNets ({names}) of which {FILE} says nothing"
        raise ModelError(f"{directory.path / UNETS}: {what}; copy the whole model again, or take the folder away")
    faults = [f"{file}: {name!r} has no folder {UNETS}/{name}" for name in sorted(named - found)]
    faults += [f"{directory.path / UNETS / name}: {FILE} names no such UNet" for name in sorted(found - named)]
    if faults:
        raise ModelError("\n".join(f"{fault}; copy the model again" for fault in faults))
    if specs:
        from asdm_cli.patches.base import check_patches, patch_of  # that takes torch

        if wrong := check_patches([patch_of(spec) for spec in specs], configs_of(directory, specs)):
            raise ModelError("\n".join(f"{file}: patches: {each}" for each in wrong))
    return specs


def checked_patches(directory: ModelDirectory) -> tuple[PatchSpec, ...]:
    """Like `patches_of`; also holds the headers of every UNet's weights against its config."""
    specs = patches_of(directory)
    faults = Faults()
    for component in unet_components(specs).values():
        with faults.at():
            check_unet(directory, component)
    faults.raise_all()
    return specs


def schedule_of(specs: Sequence[PatchSpec]) -> UNetScheduleSpec | None:
    """Who takes turns; None where one UNet serves all."""
    return next((spec for spec in specs if isinstance(spec, UNetScheduleSpec)), None)


def unet_components(specs: Sequence[PatchSpec]) -> dict[str, str]:
    """The component of a model directory that each UNet is, by its name (`unet` where it is the only one)."""
    schedule = schedule_of(specs)
    if schedule is None:
        return {UNET: UNET}
    first, *others = schedule.unets
    return {first: UNET} | {name: f"{UNETS}/{name}" for name in others}


def configs_of(directory: ModelDirectory, specs: Sequence[PatchSpec]) -> dict[str, dict[str, Any]]:
    return {name: directory.config(component) for name, component in unet_components(specs).items()}


def member(directory: ModelDirectory, name: str, component: str) -> ModelDirectory:
    """One of several UNets, as a model of its own: a bare UNet."""
    return ModelDirectory(directory.component(component), f"{directory.name}/{name}", f"{directory.source}/{component}")


def one_unet(directory: ModelDirectory) -> ModelDirectory:
    """The same directory, for verbs that work on one UNet. Raises ModelError for a model of several."""
    schedule = schedule_of(patches_of(directory))
    if schedule is None:
        return directory
    what = f"holds several UNets that take turns ({', '.join(schedule.unets)})"
    raise ModelError(f"{directory.path}: {what}; do this to one model each, then switch again")


def write_patched(
    first: ModelDirectory,
    others: Mapping[str, ModelDirectory],
    specs: Sequence[PatchSpec],
    target: Path,
    verb: str,
    link: bool = False,
    **facts: Any,
) -> None:
    """The model directory, anew: the first one's files, the UNets beside them that the specs name, and the specs.

    Each of `others`, by the UNet's name, has one UNet; those that lie in the first one's directory need none. `facts`
    go into the history. An interrupted run may have left a model here.
    """
    assemble_directory(first, target, link)
    for component in first.components if first.adapters else ():
        _write_fused(first, component, target / component)
    named = [name for name, component in unet_components(specs).items() if component not in first.components]
    for name in named:
        carry_component(unet_files(others[name]), target / UNETS / name, link)
        if others[name].adapters:
            _write_fused(others[name], UNET, target / UNETS / name)
    if first.adapters:
        facts["adapters"] = [each.told for each in first.adapters]
    if named:
        whole = {next(iter(unet_components(specs))): first, **{name: others[name] for name in named}}
        facts["unets"] = {name: origin(directory) for name, directory in whole.items()}
    record(first, target, verb, patches=specs, **facts)


def _write_fused(directory: ModelDirectory, component: str, folder: Path) -> None:
    from asdm_cli.models.adapters import write_fused  # that takes torch

    write_fused(directory, component, folder)


def unet_files(source: ModelDirectory) -> dict[Path, str]:
    """Config and weights. A bare UNet has its history beside them, which the new model tells itself."""
    return {file: name for file, name in component_files(source, UNET).items() if name != FILE}


def origin(directory: ModelDirectory, checkpoint: Checkpoint | None = None) -> dict[str, Any]:
    """Where a UNet is from, for the history of what is made of it."""
    checkpoint = checkpoint or open_checkpoint(directory.component(UNET), directory.path)
    told = {"source": directory.name, "unet_header_sha256": checkpoint.digest}
    before = history(directory)
    return {**told, "history": before} if before else told
