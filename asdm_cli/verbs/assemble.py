"""`asdm assemble`: a UNet of blocks and layers of several, their tensors copied from file to file."""

from __future__ import annotations

from dataclasses import dataclass

from asdm_cli.models.donors import Made, make, open_donors, write
from asdm_cli.recipe.verbs import NONE, AssembleRecipe
from asdm_cli.records import Report
from asdm_cli.report.run_directory import Run
from asdm_cli.unet.assembly import Choice, Part
from asdm_cli.unet.shapes import tensor_shapes
from asdm_cli.unet.weights import Checkpoint, require
from asdm_cli.verbs import explore
from asdm_cli.verbs.change import change

RESUMABLE = True


@dataclass(frozen=True)
class Plan:
    """An assembly that will fit: configs, weights and the result's shapes have been compared."""

    made: Made

    def report(self) -> Report:
        """Beside the first donor."""
        made = self.made
        taken = {
            name: f"of {made.donors[name].directory.name}: {', '.join(addresses)}"
            for name, addresses in made.taken.items()
        }
        if len(made.formats) > 1:
            taken["number formats"] = f"several, as the donors' are: {', '.join(made.formats)}"
        configs = made.first.config, made.assembly.config
        return change("assemble", made.first.directory, configs, made.size, taken)


def plan(recipe: AssembleRecipe) -> Plan | explore.Plan:
    """What would be put together, from configs and the headers of the weights. Raises ModelError."""
    donors = open_donors(recipe.donors)
    if recipe.explore:
        return explore.plan(recipe, recipe.explore, donors)
    made = make(donors, choice(recipe))
    folder = made.first.directory.component("unet")
    require(Checkpoint(made.tensors, made.first.checkpoint.digest), tensor_shapes(made.assembly.config), folder)
    return Plan(made)


def run(plan: Plan | explore.Plan, run: Run) -> Report:
    """Write the model to `run.path / "model"`, or many to `run.path / "models"`."""
    if isinstance(plan, explore.Plan):
        return explore.run(plan, run)
    write(plan.made, run.path / "model", run.link)
    return plan.report()


def choice(recipe: AssembleRecipe) -> Choice:
    """The recipe's parts in forward order."""
    last, levels = recipe.depth - 1, recipe.levels or []
    parts = {}
    for level, donor in enumerate(levels):
        for block in (f"down.{level}", f"up.{last - level}") if donor else ():
            parts[block] = Part(block, f"levels[{level}]", str(donor))
    if recipe.mid not in (None, NONE):
        parts["mid"] = Part("mid", "mid", str(recipe.mid))
    for block, source in recipe.blocks.items():
        if isinstance(source, str):
            parts[block] = Part(block, f"blocks.{block}", source)
        else:
            places = (layer.partition("/") for layer in source)
            layers = tuple((donor, address) for donor, _, address in places)
            parts[block] = Part(block, f"blocks.{block}", layers=layers)
    order = [f"down.{i}" for i in range(last + 1)] + ["mid"] * ("mid" in parts) + [f"up.{i}" for i in range(last + 1)]
    ends, embeddings = (part.donor or part.layers[0][0] for part in (parts["down.0"], parts[order[-last - 2]]))
    return Choice(tuple(parts[name] for name in order), recipe.ends or ends, recipe.embeddings or embeddings)
