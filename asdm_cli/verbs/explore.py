"""The part of `asdm assemble` that compares: combinations of donors under a budget, what they cost, what the errors of
their parts promise of them, and how near to the first donor they draw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import product
from typing import Any

from asdm_cli.compare.costs import Rounds, on_paper, unet_calls, work
from asdm_cli.compare.run import COST, Measures, Place, by_first, compare, finished, kept, told_of
from asdm_cli.compare.setup import Session, Setup, common_size, drawing, drawn_from, misfits
from asdm_cli.console import track
from asdm_cli.errors import ModelError, RunError
from asdm_cli.metrics.suite import KEYS, MetricSettings, check
from asdm_cli.models.donors import Donor, Made, make, write
from asdm_cli.models.metadata import stamps
from asdm_cli.models.write import takes
from asdm_cli.profiling.expected import Work
from asdm_cli.profiling.latency import machine, versions
from asdm_cli.recipe.verbs import NONE, AssembleRecipe, Budget, Combination, Explore
from asdm_cli.records import Record, Report, under
from asdm_cli.report.metrics import metric
from asdm_cli.report.run_directory import Run
from asdm_cli.sampling.generate import place, processes
from asdm_cli.sampling.prompts import PromptList, read_prompts
from asdm_cli.search.combinations import Foretold, agreement, foretell
from asdm_cli.search.forecasts import short
from asdm_cli.search.importance import error, listen
from asdm_cli.unet.assembly import Choice, by_levels
from asdm_cli.unet.blocks import levels as count_levels
from asdm_cli.unet.flops import meta_unet
from asdm_cli.unet.weights import bytes_digest

MODELS = "models"
MOST = 4096
"""Combinations that `all` may stand for; beyond, a list is wanted."""
LONGEST_NAME = 64
OURS = "combinations"
ERRORS = "errors"
PROMPTS, CALLS = 4, 3
"""The first so many prompts are drawn by the first donor, and so many UNet calls of each are what errors are measured
on."""
Keys = tuple[str, str]
"""Where in the recipe levels and mid block of a combination stand."""


@dataclass
class Found:
    """Those to be built, those above the budget with what is broken, and what to tell of the others."""

    made: dict[str, Made] = field(default_factory=dict)
    asked: dict[str, Combination] = field(default_factory=dict)
    over: dict[str, str] = field(default_factory=dict)
    same: list[str] = field(default_factory=list)
    misfits: int = 0

    @property
    def notes(self) -> list[str]:
        told = [f"Built once only: {', '.join(self.same)}."] if self.same else []
        return [*told, *([f"{self.misfits} do not fit together."] if self.misfits else [])]


@dataclass(frozen=True)
class Plan:
    recipe: AssembleRecipe
    explore: Explore
    donors: Mapping[str, Donor]
    first: Setup
    """The first donor itself."""
    setups: tuple[Setup, ...]
    found: Found
    prompts: PromptList
    metrics: MetricSettings
    size: int

    def report(self) -> Report:
        everybody = (self.first, *self.setups)
        paper = [record for setup in everybody for record in on_paper(setup, self.size) if not record.of]
        sizes = sorted(((one.size, one.carried) for one in self.found.made.values()), reverse=True)
        new, same = (sum(each) for each in zip(*sizes[: self.explore.draw], strict=True))
        facts = {"prompts": f"{len(self.prompts.prompts)}, {self.prompts.title}", "size": takes(new, same)}
        return Report(
            "assemble",
            {setup.name: setup.facts for setup in everybody},
            paper,
            facts={**facts, **self._above()},
            notes=self.found.notes,
        )

    def work(self) -> Work:
        drawn = self.setups[: self.explore.draw]
        return work((self.first, *drawn), len(self.prompts.prompts), None, self.size, self.explore)

    def _above(self) -> dict[str, Any]:
        return {"above the budget": self.found.over} if self.found.over else {}


def plan(recipe: AssembleRecipe, explore: Explore, donors: Mapping[str, Donor]) -> Plan:
    """Every combination held against configs, headers and the budget. Raises ModelError."""
    name, leading = next(iter(donors.items()))
    if not leading.directory.is_pipeline:
        what = "is a bare UNet; explore draws pictures, so the first donor is a whole pipeline"
        raise ModelError(f"donors.{name}: {what}")
    first = drawing(name, leading.directory, carried=False, series=name, **explore.drawn_with)
    size = common_size(explore.size, [first])
    # before all combinations are counted
    prompts = read_prompts(explore.prompts, explore.limit, explore.per_prompt, explore.inputs)
    (first,) = drawn_from([first], prompts, size)
    metrics = check(explore, prompts, leading.directory)
    whole = _whole(name, leading)
    found = _combinations(recipe, explore, donors, make(donors, whole), name, first, size)
    setups = tuple(_setup(first, name, made, donors) for name, made in found.made.items())
    if faults := misfits([first, *setups]):
        raise ModelError("\n".join(faults))
    return Plan(recipe, explore, donors, first, setups, found, prompts, metrics, size)


def run(plan: Plan, run: Run) -> Report:
    """Time all, draw those within the budget (all processes their shares); the first process then judges and writes."""
    explore, state = plan.explore, processes()
    where = Place(*place(explore.device, explore.dtype, state), plan.size, explore.seed, explore.batch)
    setups, same = distinct(plan)
    session = Session(where.device, where.dtype, [plan.first])
    rounds = Rounds(explore.repeats, explore.warmups, (1,), plan.size)
    samples, origins = run.path / "samples", {each.name: each.origin() for each in setups}

    def once(name: str, origin: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """Found out by the first process, for all."""
        whole = {**origin, "versions": versions()}
        return by_first(state, lambda: kept(samples / f"{name}.json", whole, make))

    timed = lambda: [vars(record) for record in unet_calls(session, setups, rounds)]  # noqa: E731
    on = {**machine(where.device), "dtype": str(where.dtype)}
    origin_of_times = {"rounds": vars(rounds), "setups": origins, "machine": on}
    records = [Record(**each) for each in once("times-unet", origin_of_times, timed)]
    slow = _slow(plan, records)
    names = [each.name for each in setups[1:] if each.name not in slow]
    drawn_on = {"seed": where.seed, "device": where.device.type, "dtype": str(where.dtype), "size": where.size}
    origin = {"setups": origins, "names": names, "draw": explore.draw, "prompts": plan.prompts.title, **drawn_on}
    found = once(ERRORS, origin, lambda: _errors(plan, session, names, where))
    foretold = Foretold(**found["foretold"])
    chosen = {plan.first.name, *foretold.best(names, explore.draw)}
    measures = Measures(plan.prompts, plan.metrics, grid=explore.grid)
    drawn = [each for each in setups if each.name in chosen]
    report = compare(drawn, measures, where, run.path, state, session)
    if report is None:
        return Report("assemble")
    report.records.extend(under(COST, [record for record in records if record.setup in chosen]))
    report.protocols[COST] |= told_of(rounds)
    shutil.rmtree(run.path / MODELS, ignore_errors=True)
    for setup in track(drawn[1:], "writing models"):
        write(plan.found.made[setup.name], run.path / MODELS / setup.name, run.link)
    over = {**plan.found.over, **slow}
    told = [f"{len(same)} more have the weights of another one, such as {same[0]}."] if same else []
    report.notes.extend([*plan.found.notes, *told, "Nothing was distilled: this is where distillation starts."])
    report = _with_errors(plan, report, foretold, found["measured"], [name for name in names if name not in chosen])
    return finished(report, "assemble", **({"above the budget": over} if over else {}))


def _errors(plan: Plan, session: Session, names: Sequence[str], where: Place) -> dict[str, Any]:
    """What is foretold of all these, and of those that will be drawn what they really err."""
    if not names:
        return {"foretold": {"parts": {}, "errors": {}}, "measured": {}}
    first, prompts = plan.first, plan.prompts
    settings = first.sampling(where.size, where.seed)
    latents = listen(session, first, prompts.prompts[:PROMPTS], settings, CALLS, prompts.given[:PROMPTS])

    def errs(one: Combination) -> float:
        name = json.dumps([one.levels, one.mid])
        setup = _setup(first, name, make(plan.donors, _choice(plan.recipe, one, ("levels", "mid"))), plan.donors)
        found = error(session.made(setup), setup.config, latents)
        if not found < float("inf"):
            raise RunError(f"{_name(one, plan.donors)}: the UNet answers what is no number; try `dtype: float32`")
        return found

    own = plan.donors[first.name]
    asked = {name: plan.found.asked[name] for name in names}
    whole = Combination(levels=[first.name] * count_levels(own.config), mid=_mid(first.name, own) or NONE)
    found = foretell(whole, asked, errs)
    best = found.best(names, plan.explore.draw)
    return {"foretold": vars(found), "measured": {name: errs(asked[name]) for name in track(best, "measuring errors")}}


def _with_errors(
    plan: Plan, report: Report, foretold: Foretold, measured: Mapping[str, float], left: Sequence[str]
) -> Report:
    """With what was foretold beside what was measured, how well both agree, and who was not drawn for it."""
    first, key = plan.first.name, KEYS.get(plan.explore.metrics[0], plan.explore.metrics[0])
    records = [Record(first, "output_error", value, of=f"part/{part}") for part, value in foretold.parts.items()]
    for name, value in measured.items():
        records.append(Record(name, "predicted_error", foretold.errors[name]))
        records.append(Record(name, "output_error", value))
    judged = {each.setup: each.value for each in report.records if each.metric == key and not each.of}
    both = [name for name in measured if name in judged]
    sums, real, worth = ([each[name] for name in both] for each in (foretold.errors, measured, judged))
    pairs = {"the error": (sums, real, "lower"), metric(key).title: (sums, worth, metric(key).better)}
    told = [f"{title} {found:.2f}" for title, each in pairs.items() if (found := agreement(*each)) is not None]
    facts = {
        "sums of parts": f"rank correlation over {len(both)} that were drawn (1: the same order) with "
        + ", with ".join(told)
    }
    card = {
        "prompts": plan.prompts.title,
        "latents": f"{CALLS} UNet calls of each of {min(PROMPTS, len(plan.prompts.prompts))} drawings by {first}",
        "error": "squared error of the output, as a share of its square",
    }
    undrawn = {name: f"sum of its parts' errors {foretold.errors[name]:.3g}" for name in left}
    return replace(
        report,
        records=[*report.records, *under(ERRORS, records)],
        protocols={**report.protocols, ERRORS: card},
        facts={**report.facts, **(facts if told else {}), **({"not drawn": undrawn} if undrawn else {})},
    )


def _slow(plan: Plan, records: Sequence[Record]) -> dict[str, str]:
    """Those above the budget's latency."""
    bound = plan.explore.budget and plan.explore.budget.latency_ratio
    speeds = {each.setup: each.value for each in records if each.metric == "unet_speedup" and not each.of}
    if not bound:
        return {}
    return {name: f"latency_ratio is above {bound:g}" for name, speed in speeds.items() if 1 / speed > bound}


def _setup(first: Setup, name: str, made: Made, donors: Mapping[str, Donor]) -> Setup:
    files = {donor: stamps(each.directory) for donor, each in donors.items()}
    parts = {"taken": made.taken, "config": made.assembly.config, "files": files}
    build = partial(_build, made)
    return replace(
        first,
        name=name,
        config=made.assembly.config,
        make=build,
        made_of=parts,
        series=OURS,
        source=f"{', '.join(made.taken)}: {short(parts)}",  # of the same donors there are many
    )


def _build(made: Made, unet: Any) -> Any:
    """The assembly of UNets in memory: it shares their tensors, so that many need no more room than the donors."""
    states = {name: unet(donor.directory).state_dict() for name, donor in made.donors.items()}
    keys = made.assembly.key_map(states)
    built = meta_unet(made.assembly.config)
    built.load_state_dict({new: states[donor][old] for new, (donor, old) in keys.items()}, assign=True)
    return built.eval()


def _whole(name: str, donor: Donor) -> Choice:
    """The first donor as it is."""
    return Choice(by_levels((name,) * count_levels(donor.config), _mid(name, donor)), name, name)


def _mid(name: str, donor: Donor) -> str | None:
    """The donor, if it has a mid block."""
    return None if donor.config.get("mid_block_type", "") is None else name


def distinct(plan: Plan) -> tuple[list[Setup], list[str]]:
    """The first donor and those that are other weights than each one before, and what to tell of the rest: donors may
    share weights, as one does that was pruned from the other. Reads every tensor once."""
    digest = cache(bytes_digest)
    whole = make(plan.donors, _whole(plan.first.name, plan.donors[plan.first.name]))
    entries = [entry for donor in plan.donors.values() for entry in donor.checkpoint.tensors.values()]
    for entry in track(entries if len(plan.donors) > 1 else [], "comparing weights"):
        digest(entry)
    built: dict[str, str] = {}
    setups, same = [], []
    for setup in (plan.first, *plan.setups):
        made = plan.found.made.get(setup.name, whole)
        tensors = sorted((new, digest(entry)) for new, entry in made.tensors.items())
        name = built.setdefault(json.dumps([_text(made), tensors]), setup.name)
        if name == setup.name:
            setups.append(setup)
        else:
            same.append(f"{setup.name} (is {name})")
    return setups, same


def _combinations(  # noqa: PLR0913 - what is sorted, each by its name
    recipe: AssembleRecipe,
    explore: Explore,
    donors: Mapping[str, Donor],
    whole: Made,
    first: str,
    setup: Setup,
    size: int,
) -> Found:
    """Raises ModelError for what a list asks for and does not fit, and where nothing is left."""
    found, built, faults = Found(), {_identity(whole): first}, list[str]()
    least = float("inf")
    wanted = list(_wanted(explore, donors))
    for combination, keys in track(wanted, "counting"):
        name = combination.name or _name(combination, donors)
        if name in (first, *found.made, *found.over):
            raise ModelError(f"explore.combinations: two are called {name!r}; give them names of their own")
        try:
            made = make(donors, _choice(recipe, combination, keys))
        except ModelError as error:
            faults.append(str(error))
            found.misfits += 1
            continue
        same = built.setdefault(_identity(made), name)
        if same != name:
            found.same.append(f"{name} (is {same})")
            continue
        paper = {each.metric: each.value for each in on_paper(_setup(setup, name, made, donors), size) if not each.of}
        least = min(least, paper["params_m"])
        if why := _broken(explore.budget, paper["params_m"], paper["macs_g"]):
            found.over[name] = why
        else:
            found.made[name], found.asked[name] = made, combination
    if faults and explore.combinations != "all":
        raise ModelError("\n".join(dict.fromkeys(faults)))
    if found.over and not found.made:
        what = f"all {len(found.over)} combinations are above it; the smallest has {least:.2f} M parameters; raise it"
        raise ModelError(f"explore.budget: {what}")
    if not found.made:
        raise ModelError(faults[0] if faults else f"explore.combinations: none is another UNet than {first}")
    return found


def _broken(budget: Budget | None, parameters_m: float, macs_g: float) -> str:
    """Which bounds are, or nothing."""
    figures = {"parameters_m": parameters_m, "macs_g": macs_g}
    bounds = {key: getattr(budget, key) for key in figures} if budget else {}
    broken = [key for key, bound in bounds.items() if bound is not None and figures[key] > bound]
    return ", ".join(f"{key} is above {bounds[key]:g}" for key in broken)


def _wanted(explore: Explore, donors: Mapping[str, Donor]) -> Iterator[tuple[Combination, Keys]]:
    listed = explore.combinations
    if isinstance(listed, list):
        for index, each in enumerate(listed):
            yield each, (f"explore.combinations[{index}].levels", f"explore.combinations[{index}].mid")
        return
    levels = count_levels(next(iter(donors.values())).config)
    mids = [name for name, donor in donors.items() if _mid(name, donor)]
    total = len(donors) ** levels * (len(mids) + 1)
    if total > MOST:
        raise ModelError(f"explore.combinations: 'all' would be {total}, more than {MOST}; list those that you mean")
    for chosen in product(donors, repeat=levels):
        for mid in (*mids, NONE):
            yield Combination(levels=list(chosen), mid=mid), ("levels", "mid")


def _choice(recipe: AssembleRecipe, one: Combination, keys: Keys) -> Choice:
    mid = None if one.mid == NONE else one.mid
    ends, embeddings = recipe.ends or one.levels[0], recipe.embeddings or mid or one.levels[-1]
    return Choice(by_levels(one.levels, mid, keys), ends, embeddings)


def _name(one: Combination, donors: Mapping[str, Donor]) -> str:
    """`b-b-o-o, mid o`: donors by as many first letters as tell them apart, in full where that gets too long."""
    short = {name: _letters(name, donors) for name in donors}
    mid = f"mid {short[one.mid]}" if one.mid != NONE else "no mid"
    name = f"{'-'.join(short[each] for each in one.levels)}, {mid}"
    if len(name) > LONGEST_NAME:
        raise ModelError("donors: their names are too long to name combinations by; shorten them, or give `name`s")
    return name


def _letters(name: str, donors: Mapping[str, Donor]) -> str:
    others = [other for other in donors if other != name]
    short = (name[:count] for count in range(1, len(name) + 1))
    return next((part for part in short if not any(other.startswith(part) for other in others)), name).strip()


def _identity(made: Made) -> str:
    """Equal for assemblies that would be the same files: of equal configs and of the same tensors."""
    tensors = sorted((new, str(entry.file.resolve()), entry.start) for new, entry in made.tensors.items())
    return json.dumps([_text(made), tensors])


def _text(made: Made) -> str:
    return json.dumps(made.assembly.config, sort_keys=True)
