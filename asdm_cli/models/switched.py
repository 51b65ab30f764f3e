"""Model directories of several UNets that take turns: the first is the pipeline's `unet/`, each other one lies in
`unets/NAME/`, and asdm.json says who serves what. Stock diffusers sees a plain model of the first."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asdm_cli.errors import ModelError
from asdm_cli.inheritance.course import Nodes
from asdm_cli.models.checked import check_unet
from asdm_cli.models.provenance import FILE, RUN_TIME, SWITCH, history, record, run_time_nodes, run_time_plan, told
from asdm_cli.models.source import UNETS, ModelDirectory
from asdm_cli.models.write import KEPT, assemble_directory, carry
from asdm_cli.recipe import patches
from asdm_cli.recipe.patches import Rules, Switch
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.checkpoint import open_checkpoint
from asdm_cli.unet.settings import unlike_inputs
from asdm_cli.unet.weight_files import inside

UNET = "unet"


def read_switch(directory: ModelDirectory) -> Switch | None:
    """Who takes turns in a model; None in a model of one UNet. From small files only.

    Raises RecipeError or ModelError, with the file, for what is damaged or does not belong together.
    """
    held, file = told(directory, SWITCH), directory.path / FILE
    found = {name.removeprefix(f"{UNETS}/") for name in directory.components if name.startswith(f"{UNETS}/")}
    if held is None:
        if found:
            names = ", ".join(sorted(found))
            raise ModelError(
                f"{directory.path / UNETS}: holds UNets ({names}) of which {FILE} says nothing; copy the whole model "
                "again, or take the folder away"
            )
        return None
    switch = patches.read_switch(held, f"{file}: {SWITCH}")
    named = set(switch.unets[1:])
    faults = [
        f"{file}: {SWITCH}: {name!r} has no folder {UNETS}/{name}; copy the model again"
        for name in sorted(named - found)
    ]
    faults += [
        f"{directory.path / UNETS / name}: {SWITCH} in {FILE} names no such UNet; copy the model again"
        for name in sorted(found - named)
    ]
    if switch.plans and told(directory, RUN_TIME) is not None:
        faults.append(f"{file}: holds both `{RUN_TIME}`, for every UNet, and `{SWITCH}: plans`; keep one of them")
    if not faults:
        configs = {name: directory.config(component(switch, name)) for name in switch.unets}
        faults = [f"{file}: {SWITCH}: {unlike}" for unlike in unlike_inputs(configs)]
    if faults:
        raise ModelError("\n".join(faults))
    return switch


def checked_switch(directory: ModelDirectory) -> Switch | None:
    """Like `read_switch`; also holds the headers of every UNet's weights, or the only one's, against its config."""
    switch = read_switch(directory)
    faults = []
    for name in switch.unets if switch else (UNET,):
        try:
            check_unet(directory, component(switch, name))
        except ModelError as error:
            faults.append(str(error))
    if faults:
        raise ModelError("\n".join(faults))
    return switch


def component(switch: Switch | None, name: str) -> str:
    """The component of a model directory that this UNet is."""
    return UNET if switch is None or name == switch.unets[0] else f"{UNETS}/{name}"


def member(directory: ModelDirectory, switch: Switch, name: str) -> ModelDirectory:
    """One of the UNets, as a model of its own: a bare UNet."""
    return ModelDirectory(directory.component(component(switch, name)), f"{directory.name}/{name}")


def run_time_plans(directory: ModelDirectory, switch: Switch | None) -> dict[str, Nodes]:
    """What each UNet of a model inherits, by its name (`unet` where it is the only one); those that inherit nothing
    are left out. Raises RecipeError or ModelError, with the file, where a plan does not fit."""
    if switch is None:
        nodes = run_time_nodes(directory)
        return {} if nodes is None else {UNET: nodes}
    whole = run_time_plan(directory)
    where = f"{directory.path / FILE}: {RUN_TIME}: " if whole else f"{directory.path / FILE}: {SWITCH}: plans: "
    plans = dict.fromkeys(switch.unets, whole) if whole else switch.plans
    return nodes_of(directory, switch, plans, where)


def nodes_of(
    directory: ModelDirectory, switch: Switch, plans: Mapping[str, Rules], where: str = ""
) -> dict[str, Nodes]:
    """These plans on the UNets that they are for. Raises ModelError with all that do not fit, each with its name."""
    found, faults = {}, []
    for name, plan in plans.items():
        try:
            found[name] = Nodes(plan, Anatomy.of(directory.config(component(switch, name))))
        except ModelError as error:
            faults.append(f"{where}UNet {name!r}: {error}")
    if faults:
        raise ModelError("\n".join(faults))
    return found


def one_unet(directory: ModelDirectory) -> ModelDirectory:
    """The same directory, for verbs that work on one UNet. Raises ModelError for a model of several."""
    switch = read_switch(directory)
    if switch is None:
        return directory
    names = ", ".join(switch.unets)
    raise ModelError(
        f"{directory.path}: holds several UNets that take turns ({names}); do this to one model each, then switch again"
    )


def write_switched(
    first: ModelDirectory,
    others: Mapping[str, ModelDirectory],
    switch: Switch,
    target: Path,
    link: bool = False,
    **facts: Any,
) -> None:
    """The model directory, anew: the first one's files, and the others' UNets beside them.

    `facts` go into its history. Each of the models has one UNet; the first is a pipeline.
    """
    shutil.rmtree(target, ignore_errors=True)
    assemble_directory(one_unet(first), target, set(), link)
    for name in switch.unets[1:]:
        folder = target / UNETS / name
        folder.mkdir(parents=True)
        for file in unet_files(one_unet(others[name])):
            carry(file, folder / file.name, link)
    unets = dict(zip(switch.unets, [first, *(others[name] for name in switch.unets[1:])], strict=True))
    origins = {name: _origin(directory) for name, directory in unets.items()}
    record(first, target, "switch", switch=switch, unets=origins, **facts)


def unet_files(source: ModelDirectory) -> list[Path]:
    """Config and weights. A bare UNet has its history beside them, which the new model tells itself."""
    return [
        entry
        for entry in sorted(source.component(UNET).iterdir())
        if entry.suffix in KEPT and entry.name != FILE and inside(source.path, entry).is_file()
    ]


def _origin(directory: ModelDirectory) -> dict[str, Any]:
    checkpoint = open_checkpoint(directory.component(UNET), directory.path)
    origin = {"source": directory.name, "unet_header_sha256": checkpoint.digest}
    before = history(directory)
    return {**origin, "history": before} if before else origin
