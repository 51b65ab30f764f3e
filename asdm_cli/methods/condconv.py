"""`asdm condconv-expand`: convolutions become banks of experts, or plain ones again (see `fold`)."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from math import prod

from asdm_cli.experts.spec import Spec
from asdm_cli.experts.start import Start
from asdm_cli.methods import fold
from asdm_cli.models.checked import check_unet
from asdm_cli.models.experts import first_experts, write_changed
from asdm_cli.models.provenance import record
from asdm_cli.models.source import ModelDirectory, find
from asdm_cli.models.switched import one_unet
from asdm_cli.models.write import assemble_directory, carried_size, takes
from asdm_cli.recipe.verbs import COMPRESSED, CondConvRecipe, Expand
from asdm_cli.report.document import Cell, Column, Interval, Report, Table
from asdm_cli.report.run_directory import Run
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.checkpoint import Checkpoint, Entry, open_checkpoint, require
from asdm_cli.unet.cost import Macs, change, counted, latent_size, parameters, shapes
from asdm_cli.unet.expansion import Expansion, expand

RESUMABLE = False
NOISE, SHARE = 0.05, 1e-6
"""Of `start: noise` and `start: inherited`, where a recipe does not say."""
ROWS = 2
"""Of a UNet call with guidance."""
_KERNELS = {"time": "one kernel for all", "features": "a kernel each", "both": "a kernel each"}

Row = dict[str, Cell | Interval]


@dataclass(frozen=True)
class Plan:
    """An expansion that will fit: configs and weights of model and donor have been read."""

    wanted: Expand
    source: ModelDirectory
    donor: ModelDirectory | None
    expansion: Expansion
    checkpoint: Checkpoint
    donated: dict[str, Entry]

    def report(self) -> Report:
        counts = [sum(parameters(config).values()) for config in self.configs]
        spec = self.expansion.spec
        summary = (
            f"UNet of {self.source.name}: {len(self.expansion.siblings)} convolutions of {spec.experts} experts, "
            f"{counts[0] / 1e6:.2f} M → {counts[1] / 1e6:.2f} M parameters ({counts[1] / counts[0] - 1:+.1%}), "
            f"{change(self.macs, 'a call with guidance')}. "
            f"{takes(self.checkpoint.size * counts[1] // counts[0], carried_size(self.source, {'unet'}))}"
        )
        card: dict[str, Cell | list[str]] = {
            "counted": "multiply-accumulates of one UNet call, mixing of kernels and attention's matmuls included",
            "rows": f"{ROWS}, {_KERNELS[spec.router]}",
            "latent": " × ".join(map(str, latent_size(self.configs[0]))),
            "router": f"{spec.router}, {spec.weights}",
            "start": self.wanted.start,
        }
        return Report("condconv-expand", f"Experts for {self.source.name}", summary, [_layers(self)], {"macs": card})

    @property
    def configs(self) -> tuple[dict, dict]:
        """The model's and the result's."""
        return self.source.config("unet"), self.expansion.config

    @cached_property
    def macs(self) -> tuple[Macs, ...] | None:
        """Of a call before and after, where it is known what the UNet is called with."""
        return counted(*self.configs, batch=ROWS, tokens=self.source.tokens)

    @property
    def start(self) -> Start:
        return Start(self.wanted.start, self.wanted.noise or NOISE, self.wanted.share or SHARE)


def plan(recipe: CondConvRecipe) -> Plan | fold.Plan:
    """What would be made of what, from configs and the headers of the weights. Raises ModelError."""
    source = one_unet(find(recipe.model))
    if recipe.fold:
        return fold.plan(recipe, recipe.fold, source)
    assert recipe.expand, "the recipe holds one of the two"
    wanted = recipe.expand
    donor = one_unet(find(wanted.donor)) if wanted.donor else None
    expansion = expansion_of(wanted, source.config("unet"), donor.config("unet") if donor else None)
    checkpoint = check_unet(source)
    donated = check_unet(donor).tensors if donor else {}
    return Plan(wanted, source, donor, expansion, checkpoint, donated)


def expansion_of(wanted: Expand, config: dict, donor: dict | None) -> Expansion:
    """Raises ModelError where it does not fit the UNet."""
    spec = Spec(wanted.experts, wanted.router, wanted.weights)
    at = None if wanted.at == COMPRESSED else [wanted.at] if isinstance(wanted.at, str) else list(wanted.at)
    return expand(config, spec, at, donor)


def run(plan: Plan | fold.Plan, run: Run) -> Report:
    """Write the model to `run.path / "model"`."""
    if isinstance(plan, fold.Plan):
        return fold.run(plan, run)
    model = run.path / "model"
    shutil.rmtree(model, ignore_errors=True)
    assemble_directory(plan.source, model, {"unet"}, run.link)
    own = plan.checkpoint.tensors
    changed = first_experts(plan.expansion, own, plan.donated, plan.start, plan.wanted.seed)
    kept = {name: entry for name, entry in own.items() if name not in changed}
    folder = model / "unet" if plan.source.is_pipeline else model
    write_changed(plan.expansion.config, kept, changed, folder)
    written = open_checkpoint(folder)
    require(written, shapes(plan.expansion.config), folder)
    record(
        plan.source,
        model,
        "condconv-expand",
        **plan.wanted.model_dump(mode="json", exclude_none=True, exclude={"donor"}),
        donor=plan.donor.name if plan.donor else None,
        convolutions=len(plan.expansion.siblings),
    )
    return plan.report()


def _layers(plan: Plan) -> Table:
    anatomy = Anatomy.of(plan.configs[0])
    rows: list[Row] = []
    for name, siblings in plan.expansion.siblings.items():
        shape = plan.checkpoint.tensors[f"{name}.weight"].shape
        fitting = [each for each in siblings if plan.donated and plan.donated[f"{each}.weight"].shape == shape]
        taken = fitting[: plan.wanted.experts - 1] if plan.wanted.start == "inherited" else []
        rows.append(
            {
                "address": f"{anatomy.address_of_key(f'{name}.weight')} {name.rpartition('.')[2]}",
                "kernel": " × ".join(map(str, shape)),
                "experts": plan.wanted.experts,
                "inherits": ", ".join(taken) or "copies of its own",
                "params_m": plan.wanted.experts * prod(shape) / 1e6,
            }
        )
    columns = [
        Column("address", "Convolution"),
        Column("kernel", "Kernel"),
        Column("experts", "Experts"),
        Column("inherits", "begin as"),
        Column("params_m", "Parameters (M)"),
    ]
    note = "The first expert is always the kernel as it was."
    return Table("Convolutions of experts", columns, rows, note, card="macs")
