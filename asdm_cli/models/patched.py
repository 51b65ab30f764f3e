"""What a model carries into drawing: the `patches` of its asdm.json, one list, read and written here alone.

Several UNets that take turns lie beside each other: the first is the pipeline's `unet/`, each other one lies in
`unets/NAME/`. Stock diffusers sees a plain model of the first.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asdm_cli.errors import ModelError
from asdm_cli.models.check import check_unet
from asdm_cli.models.directory import UNETS, ModelDirectory
from asdm_cli.models.metadata import FILE, history, read_metadata, record
from asdm_cli.models.write import assemble_directory, carry_component, component_files
from asdm_cli.recipe.patches import PatchSpec, UNetScheduleSpec
from asdm_cli.unet.weights import open_checkpoint

UNET = "unet"


def patches_of(directory: ModelDirectory) -> tuple[PatchSpec, ...]:
    """What a model carries, from small files alone. Raises RecipeError or ModelError, with the file, for what is
    damaged, does not fit, or does not belong together."""
    file = directory.path / FILE
    from asdm_cli.patches.base import check_patches, patch_of  # that takes torch

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
    if wrong := check_patches([patch_of(spec) for spec in specs], configs_of(directory, specs)):
        raise ModelError("\n".join(f"{file}: patches: {each}" for each in wrong))
    return specs


def checked_patches(directory: ModelDirectory) -> tuple[PatchSpec, ...]:
    """Like `patches_of`; also holds the headers of every UNet's weights against its config."""
    specs = patches_of(directory)
    faults = []
    for component in unet_components(specs).values():
        try:
            check_unet(directory, component)
        except ModelError as error:
            faults.append(str(error))
    if faults:
        raise ModelError("\n".join(faults))
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
    shutil.rmtree(target, ignore_errors=True)
    assemble_directory(first, target, set(), link)
    named = [name for name, component in unet_components(specs).items() if component not in first.components]
    for name in named:
        carry_component(unet_files(others[name]), target / UNETS / name, link)
    if named:
        whole = {next(iter(unet_components(specs))): first, **{name: others[name] for name in named}}
        facts["unets"] = {name: _origin(directory) for name, directory in whole.items()}
    record(first, target, verb, patches=specs, **facts)


def unet_files(source: ModelDirectory) -> dict[Path, str]:
    """Config and weights. A bare UNet has its history beside them, which the new model tells itself."""
    return {file: name for file, name in component_files(source, UNET).items() if name != FILE}


def _origin(directory: ModelDirectory) -> dict[str, Any]:
    checkpoint = open_checkpoint(directory.component(UNET), directory.path)
    origin = {"source": directory.name, "unet_header_sha256": checkpoint.digest}
    before = history(directory)
    return {**origin, "history": before} if before else origin
