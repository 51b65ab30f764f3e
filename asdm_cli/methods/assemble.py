"""`asdm assemble`: a UNet of blocks and layers of several, their tensors copied from file to file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from asdm_cli.methods import explore
from asdm_cli.models.donors import Donor, Made, make, open_donors, write
from asdm_cli.models.write import takes
from asdm_cli.recipe.verbs import NONE, AssembleRecipe
from asdm_cli.report.document import Cell, Column, Interval, Report, Table
from asdm_cli.report.run_directory import Run
from asdm_cli.unet.assembly import Choice, Part, Place
from asdm_cli.unet.checkpoint import Checkpoint, require
from asdm_cli.unet.cost import OUTSIDE, Macs, change, counted, latent_size, parameters, shapes

RESUMABLE = True

Row = dict[str, Cell | Interval]


@dataclass(frozen=True)
class Plan:
    """An assembly that will fit: configs, weights and the result's shapes have been compared."""

    made: Made

    def report(self) -> Report:
        made, (before, after) = self.made, self.parameters
        names = list(made.taken)
        whole = sum(after.values())
        summary = (
            f"UNet of {', '.join(names)}: {whole / 1e6:.2f} M parameters ({whole / sum(before.values()) - 1:+.1%} "
            f"beside {made.first.name}), {change(self.macs)}. "
            f"{takes(made.size, made.carried)}"
        )
        if len(made.formats) > 1:
            summary += f" Its weights are of several number formats ({', '.join(made.formats)}), as the donors' are."
        card: dict[str, Cell | list[str]] = {
            "counted": "multiply-accumulates of one UNet call, attention's matmuls (QK^T and AV) included",
            "batch": 1,
            "latent": " × ".join(map(str, latent_size(made.assembly.config))),
            "tokens": made.first.directory.tokens,
        }
        parts = [_blocks(self), _taken(made), *_moved(made)]
        return Report("assemble", f"Assembling {' and '.join(names)}", summary, [*parts], {"macs": card})

    @cached_property
    def parameters(self) -> tuple[dict[str, int], dict[str, int]]:
        """Of the first donor, and of the result."""
        return parameters(self.made.first.config), parameters(self.made.assembly.config)

    @cached_property
    def macs(self) -> tuple[Macs, ...] | None:
        """Of a call of each of the two, where it is known what the UNets are called with."""
        made = self.made
        return counted(made.first.config, made.assembly.config, tokens=made.first.directory.tokens)


def plan(recipe: AssembleRecipe) -> Plan | explore.Plan:
    """What would be put together, from configs and the headers of the weights. Raises ModelError."""
    donors = open_donors(recipe.donors)
    if recipe.explore:
        return explore.plan(recipe, recipe.explore, donors)
    return Plan(checked(donors, choice(recipe)))


def run(plan: Plan | explore.Plan, run: Run) -> Report:
    """Write the model to `run.path / "model"`, or many to `run.path / "models"`."""
    if isinstance(plan, explore.Plan):
        return explore.run(plan, run)
    write(plan.made, run.path / "model", run.link)
    return plan.report()


def checked(donors: Mapping[str, Donor], choice: Choice) -> Made:
    """The assembly, after its tensors' shapes were held against its config once more."""
    made = make(donors, choice)
    folder = made.first.directory.component("unet")
    require(Checkpoint(made.tensors, made.first.checkpoint.digest), shapes(made.assembly.config), folder)
    return made


def choice(recipe: AssembleRecipe) -> Choice:
    """The recipe's parts in forward order."""
    last, levels = recipe.depth - 1, recipe.levels or []
    given = {
        block: (f"levels[{level}]", donor)
        for level, donor in enumerate(levels)
        for block in (f"down.{level}", f"up.{last - level}")
        if donor is not None
    }
    if recipe.mid not in (None, NONE):
        given["mid"] = ("mid", str(recipe.mid))
    sides = [[f"{side}.{index}" for index in range(recipe.depth)] for side in ("down", "up")]
    names = [*sides[0], *(["mid"] if "mid" in given or "mid" in recipe.blocks else []), *sides[1]]
    parts = {name: _part(recipe, name, *given.get(name, ("", ""))) for name in names}
    deepest = parts.get("mid", parts[f"down.{last}"])
    ends, embeddings = recipe.ends or _donor(parts["down.0"]), recipe.embeddings or _donor(deepest)
    return Choice(tuple(parts.values()), ends, embeddings)


def _part(recipe: AssembleRecipe, block: str, key: str, donor: str) -> Part:
    if donor:
        return Part(block, key, donor)
    source = recipe.blocks[block]
    key = f"blocks.{block}"
    if isinstance(source, str):
        return Part(block, key, source)
    return Part(block, key, layers=tuple(_place(layer) for layer in source))


def _place(layer: str) -> Place:
    donor, _, address = layer.partition("/")
    return donor, address


def _donor(part: Part) -> str:
    return part.donor or part.layers[0][0]


def _blocks(plan: Plan) -> Table:
    assembly, after = plan.made.assembly, plan.parameters[1]
    cost = plan.macs[1] if plan.macs else None
    layers = {block.address: len(block.layers) for block in assembly.result.blocks}
    owners: dict[str, dict[str, None]] = {}
    for block in assembly.result.blocks:
        module = f"{assembly.result.module(block.address)}."
        owners[block.address] = {donor: None for new, (donor, _) in assembly.sources.items() if new.startswith(module)}
    owners[OUTSIDE] = dict.fromkeys((assembly.ends, assembly.embeddings))
    rows: list[Row] = [
        {
            "block": address,
            "source": ", ".join(owners[address]),
            "layers": layers.get(address),
            "params_m": count / 1e6,
            "macs_g": cost.blocks[address] / 1e9 if cost else None,
        }
        for address, count in after.items()
    ]
    whole: Row = {"block": "all", "source": "", "layers": sum(layers.values())}
    whole |= {"params_m": sum(after.values()) / 1e6, "macs_g": cost.total / 1e9 if cost else None}
    columns = [
        Column("block", "Block"),
        Column("source", "comes from"),
        Column("layers", "Layers"),
        Column("params_m", "Parameters (M)"),
        *([Column("macs_g", "GMACs")] if cost else []),
    ]
    return Table("Blocks", columns, [*rows, whole], card="macs", total=True)


def _taken(made: Made) -> Table:
    rows: list[Row] = [
        {"donor": name, "model": made.donors[name].directory.name, "taken": ", ".join(addresses)}
        for name, addresses in made.taken.items()
    ]
    columns = [Column("donor", "Donor"), Column("model", "is"), Column("taken", "What of the result comes from it")]
    return Table("Donors", columns, rows)


def _moved(made: Made) -> list[Table]:
    """The weight map, without what keeps its name; no table where nothing moves."""
    rows: list[Row] = [{"new": new, "donor": name, "old": old} for new, (name, old) in made.assembly.moved.items()]
    columns = [Column("new", "Module of the result"), Column("donor", "comes from"), Column("old", "and is there")]
    return [Table("Weight map", columns, rows, "All other modules keep their names.")] if rows else []
