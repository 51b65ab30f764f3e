"""`asdm prune`: a UNet without some of its addresses, its other tensors copied from file to file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod

from asdm_cli.models.check import check_unet
from asdm_cli.models.directory import ModelDirectory, find
from asdm_cli.models.metadata import record
from asdm_cli.models.switched import one_unet
from asdm_cli.models.write import assemble_directory, carried_size, takes, write_unet
from asdm_cli.recipe.verbs import PruneRecipe
from asdm_cli.report.document import Cell, Column, Interval, Report, Table
from asdm_cli.report.run_directory import Run
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.checkpoint import Checkpoint, Entry, require
from asdm_cli.unet.cost import OUTSIDE, Macs, change, counted, latent_size, parameters, shapes
from asdm_cli.unet.surgery import Surgery, remove

RESUMABLE = False
WORDS = {
    "block": "the whole block",
    "sampler": "the resampler",
    "attn": "the transformer",
}
"""What an address of this kind is, in a report."""

Row = dict[str, Cell | Interval]


@dataclass(frozen=True)
class Plan:
    """A pruning that will fit: config, weights and the result's shapes have been compared."""

    source: ModelDirectory
    surgery: Surgery
    checkpoint: Checkpoint
    tensors: dict[str, Entry]
    """Tensor name in the result -> where its bytes are."""

    def report(self) -> Report:
        before, after = (sum(counts.values()) for counts in self.parameters)
        new = sum(entry.size for entry in self.tensors.values())
        summary = (
            f"UNet of {self.source.name}: {before / 1e6:.2f} M → {after / 1e6:.2f} M parameters "
            f"({after / before - 1:+.1%}), {change(self.macs)}. "
            f"{takes(new, carried_size(self.source, {'unet'}))}"
        )
        parts: list[Table] = [_blocks(self), _removed(self), *_renumbered(self)]
        return Report("prune", f"Pruning {self.source.name}", summary, [*parts], {"macs": _card(self)})

    @property
    def configs(self) -> tuple[dict, dict]:
        """The donor's and the result's."""
        return self.source.config("unet"), self.surgery.config

    @cached_property
    def parameters(self) -> tuple[dict[str, int], dict[str, int]]:
        before, after = (parameters(config) for config in self.configs)
        return before, after

    @cached_property
    def macs(self) -> tuple[Macs, ...] | None:
        """Of a call before and after, where it is known what the UNet is called with."""
        return counted(*self.configs, tokens=self.source.tokens)


def plan(recipe: PruneRecipe) -> Plan:
    """What pruning would do, from the config and the headers of the weights. Raises ModelError."""
    source = one_unet(find(recipe.model))
    config, folder = source.config("unet"), source.component("unet")
    checkpoint = check_unet(source)
    surgery = remove(config, recipe.remove)
    tensors = {new: checkpoint.tensors[old] for new, old in surgery.key_map(checkpoint.tensors).items()}
    require(Checkpoint(tensors, checkpoint.digest), shapes(surgery.config), folder)
    return Plan(source, surgery, checkpoint, tensors)


def run(plan: Plan, run: Run) -> Report:
    """Write the pruned model to `run.path / "model"`."""
    model = run.path / "model"
    assemble_directory(plan.source, model, {"unet"}, run.link)
    write_unet(plan.surgery.config, plan.tensors, model / "unet" if plan.source.is_pipeline else model)
    record(
        plan.source,
        model,
        "prune",
        removed=list(plan.surgery.removed),
        source_unet_header_sha256=plan.checkpoint.digest,
    )
    return plan.report()


def _card(plan: Plan) -> dict[str, Cell | list[str]]:
    return {
        "counted": "multiply-accumulates of one UNet call, attention's matmuls (QK^T and AV) included",
        "batch": 1,
        "latent": " × ".join(map(str, latent_size(plan.configs[0]))),
        "tokens": plan.source.tokens,
    }


def _blocks(plan: Plan) -> Table:
    before, after = plan.parameters
    costs = [whole.blocks for whole in plan.macs or ()]
    becomes = _new_blocks(plan.surgery)
    layers = [{block.address: len(block.layers) for block in tree.blocks} for tree in _trees(plan)]
    rows: list[Row] = []
    for address in before:
        new = becomes.get(address, address if address == OUTSIDE else "")
        rows.append(
            {
                "block": address,
                "becomes": new or "removed",
                "layers_before": layers[0].get(address),
                "layers_after": layers[1].get(new, None if address == OUTSIDE else 0),
                "params_before_m": before[address] / 1e6,
                "params_after_m": after.get(new, 0) / 1e6,
            }
        )
        if costs:
            rows[-1] |= {"macs_before_g": costs[0][address] / 1e9, "macs_after_g": costs[1].get(new, 0) / 1e9}
    columns = [
        Column("block", "Block"),
        Column("becomes", "Becomes"),
        Column("layers_before", "Layers before"),
        Column("layers_after", "after"),
        Column("params_before_m", "Parameters before (M)"),
        Column("params_after_m", "after (M)"),
        *([Column("macs_before_g", "GMACs before"), Column("macs_after_g", "after")] if costs else []),
    ]
    return Table("Blocks before and after", columns, [*rows, _total(rows)], card="macs", total=True)


def _total(rows: Iterable[Row]) -> Row:
    rows = list(rows)
    summed = [key for key in rows[0] if key not in ("block", "becomes")]
    return {"block": "all", "becomes": "", **{key: sum(row[key] or 0 for row in rows) for key in summed}}  # type: ignore[misc]


def _removed(plan: Plan) -> Table:
    sizes = _sizes(plan.surgery.donor, plan.checkpoint.tensors)
    rows: list[Row] = [
        {"address": name, "what": _what(plan.surgery.donor, name), "params_m": _inside(plan, name, sizes) / 1e6}
        for name in plan.surgery.removed
    ]
    columns = [Column("address", "Address"), Column("what", "What it is"), Column("params_m", "Parameters (M)")]
    return Table("Removed", columns, rows)


def _renumbered(plan: Plan) -> list[Table]:
    """The weight map, without what keeps its name; no table where nothing is renumbered."""
    rows: list[Row] = [{"new": new, "old": old} for new, old in plan.surgery.renumbered.items()]
    columns = [Column("new", "Module of the result"), Column("old", "comes from")]
    note = "All other modules keep their names."
    return [Table("Weight map", columns, rows, note)] if rows else []


def _trees(plan: Plan) -> tuple[Anatomy, Anatomy]:
    return plan.surgery.donor, plan.surgery.result


def _new_blocks(surgery: Surgery) -> dict[str, str]:
    """Block of the donor -> block of the result."""
    old, new = (
        {str(tree.module(block.address)): block.address for block in tree.blocks}
        for tree in (surgery.donor, surgery.result)
    )
    return {old[source.rsplit(".", 2)[0]]: new[module.rsplit(".", 2)[0]] for module, source in surgery.sources.items()}


def _sizes(anatomy: Anatomy, tensors: dict[str, Entry]) -> dict[str, int]:
    """Elements of the tensors that each address owns by itself."""
    sizes: dict[str, int] = {}
    for key, entry in tensors.items():
        address = anatomy.address_of_key(key)
        if address is not None:
            sizes[address] = sizes.get(address, 0) + prod(entry.shape)
    return sizes


def _inside(plan: Plan, pattern: str, sizes: dict[str, int]) -> int:
    donor = plan.surgery.donor
    inside = frozenset().union(*(donor.inside(address) for address in donor.match(pattern)))
    return sum(sizes.get(address, 0) for address in inside)


def _what(anatomy: Anatomy, pattern: str) -> str:
    if pattern not in anatomy:
        return "the transformers of all layers"
    node = anatomy.node(pattern)
    if node.kind == "layer":
        return "resnet and transformer" if len(node.modules) > 1 else "resnet"
    return WORDS[node.kind]
