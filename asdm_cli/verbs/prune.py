"""`asdm prune`: a UNet without some of its addresses, its other tensors copied from file to file; which ones is said,
or measured on the model itself, under a budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asdm_cli.models.directory import ModelDirectory, check_unet, find
from asdm_cli.models.metadata import one_unet, record
from asdm_cli.models.write import assemble_directory
from asdm_cli.recipe.verbs import Importance, PruneRecipe
from asdm_cli.records import Report
from asdm_cli.report.run_directory import Run
from asdm_cli.unet.addresses import DEPTH
from asdm_cli.unet.blocks import stated
from asdm_cli.unet.shapes import tensor_shapes
from asdm_cli.unet.surgery import Surgery, remove
from asdm_cli.unet.weights import WEIGHTS, Checkpoint, copy_tensors, require
from asdm_cli.verbs.change import change

if TYPE_CHECKING:
    from asdm_cli.verbs.importance import Search

RESUMABLE = False


@dataclass(frozen=True)
class Plan:
    """A pruning that will fit: config, weights and the result's shapes have been compared. `kept` are the result's
    tensors by their names there, with the digest of the source's."""

    source: ModelDirectory
    surgery: Surgery
    kept: Checkpoint

    def report(self) -> Report:
        surgery, configs = self.surgery, (self.source.config("unet"), self.surgery.config)
        old, new = (
            {tree.node(block.address).modules[0]: block.address for block in tree.blocks}
            for tree in (surgery.donor, surgery.left.result)
        )
        becomes = dict.fromkeys(old.values(), "")
        for module, source in surgery.sources.items():
            if DEPTH not in module:
                becomes[old[source.rsplit(".", 2)[0]]] = new[module.rsplit(".", 2)[0]]
        made = {"removed": ", ".join(surgery.removed) or "nothing"}
        return change("prune", self.source, configs, self.kept.size, made, becomes)


def plan(recipe: PruneRecipe) -> Plan | Search:
    """What pruning would do, from the config and the headers of the weights. Raises ModelError."""
    source = one_unet(find(recipe.model))
    checkpoint = check_unet(source)
    if isinstance(recipe.remove, Importance):
        from asdm_cli.verbs.importance import search  # takes torch

        return search(source, checkpoint, recipe.remove)
    return planned(source, checkpoint, remove(source.config("unet"), recipe.remove))


def planned(source: ModelDirectory, checkpoint: Checkpoint, surgery: Surgery) -> Plan:
    """Raises ModelError."""
    tensors = {new: checkpoint.tensors[old] for new, old in surgery.key_map(checkpoint.tensors).items()}
    kept = Checkpoint(tensors, checkpoint.digest)
    require(kept, tensor_shapes(surgery.config), source.component("unet"))
    return Plan(source, surgery, kept)


def run(plan: Plan | Search, run: Run) -> Report:
    """Write the pruned model to `run.path / "model"`."""
    return write(plan, run) if isinstance(plan, Plan) else plan.run(run)


def write(plan: Plan, run: Run, **facts: Any) -> Report:
    """The model, of which `asdm.json` will tell these facts too."""
    source, model = plan.source, run.path / "model"
    copy_tensors(plan.kept.tensors, assemble_directory(source, model, run.link, plan.surgery.config) / WEIGHTS)
    removed, config = list(plan.surgery.removed), stated(source.config("unet"))
    record(
        source, model, "prune", removed=removed, unet_config=config, source_unet_header_sha256=plan.kept.digest, **facts
    )
    return plan.report()
