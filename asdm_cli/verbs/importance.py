"""The part of `asdm prune` that measures: every unit that a stock config can do without, alone, and the set of them
that goes under a budget, beside the sets that have names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from math import ceil
from pathlib import Path

from diffusers import UNet2DConditionModel

from asdm_cli.compare.costs import on_paper, work
from asdm_cli.compare.run import SAMPLES, Place, draw_all, keep, recalled
from asdm_cli.compare.setup import Session, Setup, common_size, drawing, drawn_from
from asdm_cli.errors import ModelError
from asdm_cli.metrics.suite import MetricSettings, MetricSuite, check
from asdm_cli.models.directory import ModelDirectory
from asdm_cli.profiling.expected import Work
from asdm_cli.profiling.latency import versions
from asdm_cli.recipe.verbs import Importance, Pictures
from asdm_cli.records import Record, Report, Timeline, under
from asdm_cli.report.run_directory import Run
from asdm_cli.sampling.generate import place, processes
from asdm_cli.sampling.image_set import ImageSet
from asdm_cli.sampling.prompts import PromptList, read_prompts
from asdm_cli.search import importance
from asdm_cli.search.importance import Chosen, Latents, Left, choose, error, listen, paper_costs, time_costs
from asdm_cli.unet.addresses import NAMED
from asdm_cli.unet.removals import NOTHING, Removals, Unit
from asdm_cli.unet.surgery import remove
from asdm_cli.unet.weights import Checkpoint
from asdm_cli.verbs.change import PROTOCOL, figures
from asdm_cli.verbs.prune import planned, write

IMPORTANCE = "importance"
FIGURES = {"output": "output_error", "feature": "feature_error", "label_accuracy": "label_accuracy_lost"}
"""By what it is measured by, what a set errs."""
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
Costs = Mapping[Unit, Mapping[str, float]]
Errs = Callable[[Left], float]


@dataclass(frozen=True)
class Search:
    """A pruning whose addresses will be measured: what may go, of a pipeline that draws. `metrics` where what counts is
    what its pictures show."""

    source: ModelDirectory
    checkpoint: Checkpoint
    asked: Importance
    removals: Removals
    setup: Setup
    prompts: PromptList
    metrics: MetricSettings | None
    size: int

    @property
    def budget(self) -> tuple[str, float]:
        """The bound's word, and what it says."""
        return next(iter(self.asked.budget.model_dump(exclude_none=True).items()))

    def report(self) -> Report:
        drawn = f"{len(self.prompts.prompts)}, {self.prompts.title}"
        told = {"units that may go": len(self.removals.units), "prompts": drawn, "measured by": self.asked.by}
        paper = [record for record in on_paper(self.setup, self.size) if not record.of]
        return Report("prune", {self.setup.name: self.setup.facts}, paper, facts=told)

    def work(self) -> Work:
        each = len(self.removals.units) * self.asked.calls / self.setup.calls
        drawings = len(self.removals.units) + 1 if self.metrics else 1 + each
        return work((self.setup,), round(drawings * len(self.prompts.prompts)), None, self.size, self.asked)

    def most(self, costs: Costs) -> float:
        """What may be left."""
        kind, bound = self.budget
        whole = sum(costs[NOTHING].values())
        return whole - bound if kind == "layers" else bound * whole

    def run(self, run: Run) -> Report:
        """The first process measures every unit, chooses, looks again on other latents, and writes."""
        return _measured(self, run) if processes().is_main_process else Report("prune")


def search(source: ModelDirectory, checkpoint: Checkpoint, asked: Importance) -> Search:
    """Raises ModelError also where no stock config is within the budget, as far as paper can tell."""
    if not source.is_pipeline:
        what = "is a bare UNet, and what matters is measured on latents that a pipeline makes"
        raise ModelError(f"remove: {source.name} {what}; name its pipeline, or addresses to remove")
    if asked.by == "label_accuracy" and "probe" not in source.components:
        what = "asks the model's own probe what a picture shows, and there is no folder probe/"
        raise ModelError(f"remove.by: label_accuracy {what} in {source.path}; choose `output` or `feature`")
    setup = replace(drawing(source.name, source, **asked.drawn_with), patches=())  # the UNet alone, and whole
    size = common_size(asked.size, [setup])
    prompts = read_prompts(asked.prompts, asked.limit, 1, asked.inputs)
    (setup,) = drawn_from([setup], prompts, size)
    judged = Pictures(metrics=["label_accuracy"], bootstrap=1, seed=asked.seed)
    metrics = check(judged, prompts, source) if asked.by == "label_accuracy" else None
    removals = Removals.of(source.config("unet"))
    found = Search(source, checkpoint, asked, removals, setup, prompts, metrics, size)
    kind, _ = found.budget
    if kind != "time":
        costs = paper_costs(removals, kind, setup.latent(size), source.tokens)
        nothing = dict.fromkeys(removals.units, 0.0)
        if not removals.best(nothing, costs, found.most(costs)):
            least, whole = importance.least_left(removals, costs)
            if kind == "layers":
                raise ModelError(f"remove.budget.layers: {whole - least:.0f} of {whole:.0f} can go at most; lower it")
            least = ceil(1000 * least / whole) / 1000  # can be asked for
            raise ModelError(f"remove.budget.{kind}: the least that a stock config can leave is {least:.3f}; raise it")
    return found


def _measured(search: Search, run: Run) -> Report:
    asked, removals, setup, name = search.asked, search.removals, search.setup, search.removals.name
    device, dtype = place(asked.device, asked.dtype, processes())
    session = Session(device, dtype, [setup])
    settings = setup.sampling(search.size, asked.seed)
    hear = partial(listen, session, setup, settings=settings, calls=asked.calls, features=asked.by == "feature")
    latents = hear(search.prompts.prompts, given=search.prompts.given)
    unet = session.unet(search.source)
    errs = _accuracy(search, session, run.path) if search.metrics else _error(search, unet, latents)
    origin = {
        **{"by": asked.by, "calls": asked.calls, "seed": asked.seed},
        "prompts": [search.prompts.title, len(search.prompts.prompts)],
        **{"size": search.size, "dtype": str(dtype), "device": device.type, "setup": setup.origin()},
        "versions": versions(),
    }
    digest = sha256(json.dumps(origin, sort_keys=True, default=str).encode()).hexdigest()[:16]
    file = Path(asked.cache_folder) / IMPORTANCE / f"{search.source.name}-{digest}.json"
    held: dict[str, float] = recalled(file, origin) or {}

    def by(units: Sequence[Unit]) -> float:
        """Kept at once: an interruption loses one at most."""
        if (without := name(units)) not in held:
            held[without] = errs(Left.without(removals, units))
            held.update(recalled(file, origin) or {})  # what others, with another budget, measure beside this
            keep(file, origin, held)
        return held[without]

    errors = importance.measure(removals, by)
    kind, bound = search.budget
    costs = (
        time_costs(removals, unet, latents.calls[0], device)
        if kind == "time"
        else paper_costs(removals, kind, setup.latent(search.size), search.source.tokens)
    )
    chosen = choose(removals, errors, costs, search.most(costs), by)
    surgery = removals.surgery(chosen.units)
    facts = {"budget": {kind: bound}, "by": asked.by, "error": chosen.error, "predicted_error": chosen.predicted}
    report = write(planned(search.source, search.checkpoint, surgery), run, importance=facts)
    _, result = report.setups
    sets = [Left.of(result, surgery), *_named(removals)]
    found = {each.name: chosen.error if each.name == result else errs(each) for each in sets}
    elsewhere: dict[str, float] = {}
    if not search.metrics:
        more = read_prompts(asked.prompts, 2 * asked.limit, 1, asked.inputs)
        after = slice(asked.limit, None) if len(more.prompts) > asked.limit else slice(None)
        again = _error(search, unet, hear(more.prompts[after], given=more.given[after], first=asked.limit))
        elsewhere = {each.name: again(each) for each in sets}
    shutil.rmtree(run.path / SAMPLES, ignore_errors=True)
    counted = [record for each in sets[1:] for record in figures(each.name, each.config, 1, search.source.tokens)]
    report.setups.update({each.name: {"series": "named sets"} for each in sets[1:]})
    report.records.extend(under(PROTOCOL, [record for record in counted if not record.of]))
    return _told(report, search, errors, chosen, found, elsewhere, file)


def _named(removals: Removals) -> Iterator[Left]:
    """The sets with names that fit this UNet."""
    for name in NAMED:
        try:
            yield Left.of(f"{name} instead", remove(removals.config, name))
        except ModelError:
            continue


def _error(search: Search, unet: UNet2DConditionModel, latents: Latents) -> Errs:
    """Of the output, or of the blocks' outputs, on these latents."""
    whole = search.removals.config if search.asked.by == "feature" else None
    return lambda left: error(left.build(unet), left.config, latents, whole)


def _accuracy(search: Search, session: Session, folder: Path) -> Errs:
    """What share of pictures no longer shows what it should."""
    where, prompts = Place(session.device, session.dtype, search.size, search.asked.seed), search.prompts
    names: dict[str, str] = {}

    def drawn(setup: Setup) -> ImageSet:
        return draw_all(session, [setup], prompts, where, folder / SAMPLES, processes())[setup.name]

    def share(name: str, images: ImageSet) -> float:
        figures = suite.measure(name, images, paired=False)
        return next(each.value for each in figures if (each.metric, each.of) == ("label_accuracy", ""))

    def lost(left: Left) -> float:
        name = names.setdefault(left.name, f"without-{len(names)}")
        make = lambda unet: left.build(unet(search.source))  # noqa: E731
        made_of = {"left": left.name}
        setup = replace(search.setup, name=name, config=left.config, make=make, made_of=made_of)
        return whole - share(name, drawn(setup))

    assert search.metrics is not None, "asked for only where pictures tell"
    plain = drawn(search.setup)
    suite = MetricSuite(search.metrics, prompts, search.setup.name, plain, None, folder, session.device)
    whole = share(search.setup.name, plain)
    return lost


def _told(  # noqa: PLR0913 - what was found out, each by its name
    report: Report,
    search: Search,
    errors: Mapping[Unit, float],
    chosen: Chosen,
    found: Mapping[str, float],
    elsewhere: Mapping[str, float],
    file: Path,
) -> Report:
    """With what every unit errs alone, what the chosen set and those with names do (`found`, and `elsewhere`, on other
    latents), and a picture of the UNet."""
    first, result, *_ = report.setups
    name, anatomy, key = search.removals.name, search.removals.anatomy, FIGURES[search.asked.by]
    ranked = sorted(errors, key=lambda unit: errors[unit])
    records = [Record(first, "error_alone", errors[unit], of=f"removed alone/{name([unit])}") for unit in ranked]
    records.append(Record(result, "predicted_error", chosen.predicted))
    records += [Record(setup, key, value) for setup, value in found.items()]
    records += [Record(setup, key, value, of="latents/others") for setup, value in elsewhere.items()]
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
    what = (
        "label accuracy lost" if search.metrics else f"squared error of the {search.asked.by}, as a share of its square"
    )
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
