"""`asdm prune`: a UNet without some of its addresses, its other tensors copied from file to file; which ones is said,
or measured on the model itself, under a budget.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from asdm_cli.errors import ModelError
from asdm_cli.models.directory import ModelDirectory, check_unet, find
from asdm_cli.models.metadata import one_unet, record
from asdm_cli.models.write import assemble_directory
from asdm_cli.recipe.verbs import Importance, PruneRecipe
from asdm_cli.records import Record, Report, Timeline, under
from asdm_cli.report.run_directory import Run
from asdm_cli.unet.addresses import DEPTH, NAMED
from asdm_cli.unet.blocks import stated
from asdm_cli.unet.removals import NOTHING, Removals, Unit
from asdm_cli.unet.shapes import tensor_shapes
from asdm_cli.unet.surgery import Surgery, remove
from asdm_cli.unet.weights import WEIGHTS, Checkpoint, copy_tensors, require
from asdm_cli.verbs.change import change

RESUMABLE = False
IMPORTANCE = "importance"
LETTERS = {
    "x": "goes",
    "a": "error below 0.001",
    "b": "0.001 to 0.01",
    "c": "0.01 to 0.1",
    "d": "0.1 to 1",
    "e": "above 1",
    "-": "cannot go alone",
}
"""Classes of importance in the picture of the UNet."""


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


@dataclass(frozen=True)
class Search:
    """A pruning whose addresses will be measured: what may go, of a pipeline that draws."""

    source: ModelDirectory
    checkpoint: Checkpoint
    asked: Importance
    removals: Removals
    setup: Any
    prompts: Any
    metrics: Any
    size: int

    @property
    def budget(self) -> tuple[str, float]:
        """The bound's word, and what it says."""
        return next(iter(self.asked.budget.model_dump(exclude_none=True).items()))

    def report(self) -> Report:
        from asdm_cli.compare.costs import on_paper

        drawn = f"{len(self.prompts.prompts)}, {self.prompts.title}"
        told = {"units that may go": len(self.removals.units), "prompts": drawn, "measured by": self.asked.by}
        paper = [record for record in on_paper(self.setup, self.size) if not record.of]
        return Report("prune", {self.setup.name: self.setup.facts}, paper, facts=told)

    def work(self) -> Any:
        from asdm_cli.compare.costs import work

        each = len(self.removals.units) * self.asked.calls / self.setup.calls
        drawings = len(self.removals.units) + 1 if self.asked.by == "label_accuracy" else 1 + each
        return work((self.setup,), round(drawings * len(self.prompts.prompts)), None, self.size, self.asked)


def plan(recipe: PruneRecipe) -> Plan | Search:
    """What pruning would do, from the config and the headers of the weights. Raises ModelError."""
    source = one_unet(find(recipe.model))
    checkpoint = check_unet(source)
    if isinstance(recipe.remove, Importance):
        return _search(source, checkpoint, recipe.remove)
    return _plan(source, checkpoint, remove(source.config("unet"), recipe.remove))


def _plan(source: ModelDirectory, checkpoint: Checkpoint, surgery: Surgery) -> Plan:
    tensors = {new: checkpoint.tensors[old] for new, old in surgery.key_map(checkpoint.tensors).items()}
    kept = Checkpoint(tensors, checkpoint.digest)
    require(kept, tensor_shapes(surgery.config), source.component("unet"))
    return Plan(source, surgery, kept)


def _search(source: ModelDirectory, checkpoint: Checkpoint, asked: Importance) -> Search:
    """Raises ModelError also where no stock config is within the budget, as far as paper can tell."""
    from asdm_cli.compare.setup import common_size, drawing, drawn_from
    from asdm_cli.metrics.suite import check
    from asdm_cli.sampling.prompts import read_prompts
    from asdm_cli.search.importance import paper_costs

    if not source.is_pipeline:
        what = "is a bare UNet, and what matters is measured on latents that a pipeline makes"
        raise ModelError(f"remove: {source.name} {what}; name its pipeline, or addresses to remove")
    setup = drawing(source.name, source, carried=False, **asked.drawn_with)
    size = common_size(asked.size, [setup])
    prompts = read_prompts(asked.prompts, asked.limit, 1, asked.inputs)
    (setup,) = drawn_from([setup], prompts, size)
    metrics = None
    if asked.by == "label_accuracy":
        wanted = {"metrics": ["label_accuracy"], "features": "efficientnet_lite0", "clip": "own", "probe": "own"}
        judged: Any = SimpleNamespace(**wanted, bootstrap=1, confidence=0.95, seed=asked.seed)
        metrics = check(judged, prompts, source)
    removals = Removals.of(source.config("unet"))
    found = Search(source, checkpoint, asked, removals, setup, prompts, metrics, size)
    kind, _ = found.budget
    if kind != "time":
        costs = paper_costs(removals, kind, setup.latent(size), source.tokens)
        if not removals.best(dict.fromkeys(removals.units, 0.0), costs, _most(found, costs)):
            least = min(
                sum(costs[drop].values()) - point.saved
                for drop in removals.drops
                for point in removals.front(drop, dict.fromkeys(removals.units, 0.0), costs[drop])[:1]
            )
            share = least / sum(costs[NOTHING].values())
            raise ModelError(f"remove.budget.{kind}: the least that a stock config can leave is {share:.3f}; raise it")
    return found


def _most(search: Search, costs: Mapping[Unit, Mapping[str, float]]) -> float:
    kind, bound = search.budget
    whole = sum(costs[NOTHING].values())
    return whole - bound if kind == "layers" else bound * whole


def run(plan: Plan | Search, run: Run) -> Report:
    """Write the pruned model to `run.path / "model"`."""
    if isinstance(plan, Plan):
        return _write(plan, run)
    from asdm_cli.sampling.generate import processes

    if not processes().is_main_process:
        return Report("prune")
    return _measured(plan, run)


def _write(plan: Plan, run: Run, **facts: Any) -> Report:
    source, model = plan.source, run.path / "model"
    copy_tensors(plan.kept.tensors, assemble_directory(source, model, run.link, plan.surgery.config) / WEIGHTS)
    removed, config = list(plan.surgery.removed), stated(source.config("unet"))
    record(
        source, model, "prune", removed=removed, unet_config=config, source_unet_header_sha256=plan.kept.digest, **facts
    )
    return plan.report()


def _measured(search: Search, run: Run) -> Report:
    """Measure every unit, choose, check on other latents, write."""
    from asdm_cli.compare.run import kept
    from asdm_cli.compare.setup import Session
    from asdm_cli.profiling.latency import versions
    from asdm_cli.sampling.generate import place
    from asdm_cli.sampling.prompts import read_prompts
    from asdm_cli.search.importance import choose, error, listen, measure, paper_costs, time_costs, without

    asked, removals, setup, name = search.asked, search.removals, search.setup, search.removals.name
    device, dtype = place(asked.device, asked.dtype, _state())
    session = Session(device, dtype, [setup])
    settings = setup.sampling(search.size, asked.seed, device=device, dtype=dtype)
    prompts, features = search.prompts, asked.by == "feature"
    hear = partial(listen, session, setup, settings=settings, calls=asked.calls)
    latents = hear(prompts.prompts, given=prompts.given, features=features)
    unet = session.unet(search.source)
    whole = removals.config if features else None

    def errs(units: Sequence[Unit]) -> float:
        made, config = without(unet, removals, units)
        return error(made, config, latents, whole)

    by = _accuracy(search, session, run.path) if asked.by == "label_accuracy" else errs
    origin = {
        **{"by": asked.by, "calls": asked.calls, "prompts": prompts.title, "seed": asked.seed, "size": search.size},
        **{"dtype": str(dtype), "device": device.type, "setup": setup.origin(), "versions": versions()},
    }
    digest = sha256(json.dumps(origin, sort_keys=True, default=str).encode()).hexdigest()[:16]
    file = Path(asked.cache_folder) / IMPORTANCE / f"{search.source.name}-{digest}.json"
    held = kept(file, origin, lambda: {name([unit]): value for unit, value in measure(removals, by).items()})
    errors = {unit: held[name([unit])] for unit in removals.units}
    kind, bound = search.budget
    costs = (
        time_costs(removals, unet, latents.calls[0], device)
        if kind == "time"
        else paper_costs(removals, kind, setup.latent(search.size), search.source.tokens)
    )
    chosen = choose(removals, errors, costs, _most(search, costs), by)
    made, config = without(unet, removals, chosen.units)
    more = read_prompts(asked.prompts, 2 * asked.limit, 1, asked.inputs)
    after = slice(asked.limit, None) if len(more.prompts) > asked.limit else slice(None)
    others = hear(more.prompts[after], given=more.given[after], features=features, first=asked.limit)
    elsewhere = error(made, config, others, whole) if asked.by != "label_accuracy" else None
    known = _known(search, unet, [latents, others], whole)
    shutil.rmtree(run.path / "samples", ignore_errors=True)
    facts = {"budget": {kind: bound}, "by": asked.by, "error": chosen.error, "predicted_error": chosen.predicted}
    report = _write(_plan(search.source, search.checkpoint, removals.surgery(chosen.units)), run, importance=facts)
    report = _told(report, search, errors, chosen, elsewhere, file)
    return replace(report, facts={**report.facts, "known sets": known}) if known else report


def _known(search: Search, unet: Any, latents: Sequence[Any], whole: Any) -> list[dict[str, Any]]:
    """What the named sets that fit this UNet cost, and how they err on the same latents and on the others."""
    from asdm_cli.search.importance import built, error
    from asdm_cli.unet.flops import macs, parameters

    size, tokens = search.setup.latent(search.size), search.source.tokens
    config = search.removals.config
    cost = {
        "params": lambda each: sum(parameters(each).values()),
        "macs": lambda each: macs(each, size=size, tokens=tokens).total,
    }
    rows = []
    for name in NAMED:
        try:
            surgery = remove(config, name)
        except ModelError:
            continue
        made = built(unet, surgery)
        shares = {kind: round(each(surgery.config) / each(config), 4) for kind, each in cost.items()}
        errs = [error(made, surgery.config, each, whole) for each in latents]
        rows.append({"set": name, **shares, "error": f"{errs[0]:.3g}", "on other latents": f"{errs[1]:.3g}"})
    return rows


def _state() -> Any:
    from asdm_cli.sampling.generate import processes

    return processes()


def _accuracy(search: Search, session: Any, folder: Path) -> Callable[[Sequence[Unit]], float]:
    """What share of pictures no longer shows what it should, without some units."""
    from asdm_cli.compare.run import Measures, Place, compare
    from asdm_cli.search.importance import without

    where = Place(session.device, session.dtype, search.size, search.asked.seed)
    names: dict[tuple[Unit, ...], str] = {}

    def share(units: Sequence[Unit]) -> float:
        key = tuple(units)
        name = names.setdefault(key, f"without-{len(names)}" if key else search.setup.name)
        setup = search.setup
        if key:
            config = without(session.unet(search.source), search.removals, units)[1]
            make = lambda unet: without(unet(search.source), search.removals, units)[0]  # noqa: E731
            setup = replace(
                setup, name=name, config=config, make=make, made_of={"without": [list(each) for each in key]}
            )
        measures = Measures(search.prompts, search.metrics, grid=1)
        report = compare([setup], measures, where, folder, _state(), session)
        assert report is not None, "the first process judges"
        return next(each.value for each in report.records if each.metric == "label_accuracy" and each.setup == name)

    whole = share([])
    return lambda units: whole - share(units)


def _told(
    report: Report, search: Search, errors: Mapping[Unit, float], chosen: Any, elsewhere: float | None, file: Path
) -> Report:
    first, result = list(report.setups)
    name, anatomy = search.removals.name, search.removals.anatomy
    ranked = sorted(errors, key=lambda unit: errors[unit])
    records = [Record(first, "error_alone", errors[unit], of=f"removed alone/{name([unit])}") for unit in ranked]
    accuracy = search.asked.by == "label_accuracy"
    records += [Record(result, "predicted_error", chosen.predicted), Record(result, "output_error", chosen.error)]
    if elsewhere is not None:
        records.append(Record(result, "output_error", elsewhere, of="latents/others"))
    gone = anatomy.match(list(report.facts["removed"].split(", ")))
    inside = frozenset().union(*(anatomy.inside(address) for address in gone))
    rows = {}
    for block in anatomy.blocks:
        parts = [node.address for node in anatomy.nodes if node.kind in ("resnet", "depth", "sampler")]
        mine = [address for address in parts if address.startswith(f"{block.address}.")]
        rows[block.address] = "".join(_letter(address, errors, inside) for address in mine)
    note = "Across: resnets, each followed by its transformer's blocks, then the resampler, as they are computed."
    picture = Timeline("Importance of every part of the UNet", rows, dict(LETTERS), note, axis="part of the block")
    ratio = chosen.error / chosen.predicted if chosen.predicted > 0 else float("nan")
    what = "label accuracy lost" if accuracy else f"squared error of the {search.asked.by}, as a share of its square"
    told = {
        "importance": f"{what}; kept in {file}",
        "additive": f"together {chosen.error:.3g}, the sum of what each errs alone is {chosen.predicted:.3g} "
        f"({ratio:.2f} of it); {chosen.tried} sets were measured whole",
    }
    card = {
        "prompts": search.prompts.title,
        "latents": f"{search.asked.calls} UNet calls of each drawing, {search.setup.steps} steps, "
        f"guidance {search.setup.guidance:g}",
        "error": what,
    }
    return replace(
        report,
        records=[*report.records, *under(IMPORTANCE, records)],
        protocols={**report.protocols, IMPORTANCE: card},
        timelines=[picture],
        facts={**report.facts, **told},
    )


def _letter(address: str, errors: Mapping[Unit, float], gone: frozenset[str]) -> str:
    """The least that any unit errs that takes this part along."""
    layer = address.removesuffix(".resnet")
    found = [value for unit, value in errors.items() if address in unit or layer in unit]
    if address in gone:
        return "x"
    if not found:
        return "-"
    return next(
        letter for letter, most in zip("abcde", (1e-3, 1e-2, 0.1, 1, float("inf")), strict=True) if min(found) <= most
    )
