"""The one comparison: images of all set-ups, by all processes; then the first one counts, times and judges."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from asdm_cli.compare.costs import Rounds, by_block, memory, on_paper, plan_calls, ratios, three_ways, times, unet_calls
from asdm_cli.compare.setup import CONVERGED, INPUTS, REAL, VAE, Session, Setup, image_call, networks
from asdm_cli.console import track
from asdm_cli.errors import RunError, blame
from asdm_cli.metrics import distances
from asdm_cli.metrics.suite import MetricSettings, MetricSuite, against_real, needed
from asdm_cli.models.metadata import stamps
from asdm_cli.models.pipelines import PIPELINES
from asdm_cli.models.write import write_json
from asdm_cli.patches.base import Stats, ways_to_draw
from asdm_cli.patches.cache_plan import picture, resolve
from asdm_cli.patches.unet_schedule import who_serves
from asdm_cli.profiling.latency import ORDER_RULE, clocked, machine, measured_on, round_robin, stopwatch, versions
from asdm_cli.profiling.macs import Counts, count
from asdm_cli.profiling.memory import HOW
from asdm_cli.recipe.patches import NULLS
from asdm_cli.records import Card, Images, Record, Report, Timeline, under
from asdm_cli.sampling.generate import SamplingSettings, Share, draw
from asdm_cli.sampling.image_set import ImageSet, real_origin, real_set, reconstruct
from asdm_cli.sampling.prompts import PromptList

COST, QUALITY = "cost", "quality"
SAMPLES = "samples"
FEW_FOR_FRECHET = 2000
Times = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Measures:
    """What is found out. `prompts` and `metrics` None: nothing is drawn to be judged; `rounds` None: nothing is timed.

    `unet`: also UNet calls, block by block, plans call by call, and memory. Without `costs` nothing is counted either.
    """

    prompts: PromptList | None = None
    metrics: MetricSettings | None = None
    rounds: Rounds | None = None
    unet: bool = False
    costs: bool = True
    reference: str = ""
    converged: Setup | None = None
    grid: int = 8


@dataclass(frozen=True)
class Place:
    """Where, and with what numbers, all set-ups draw."""

    device: torch.device
    dtype: torch.dtype
    size: int | None
    seed: int = 0
    batch: int = 16


def compare(
    setups: Sequence[Setup],
    measures: Measures,
    place: Place,
    out: Path,
    state: PartialState,
    session: Session | None = None,
) -> Report | None:
    """The records of all that was measured, the first set-up being what others are compared with. None for processes
    but the first. Interrupted, it goes on: images, and the times of finished series, are kept in `out`."""
    near, prompts = [measures.converged] if measures.converged else [], measures.prompts
    session = session or Session(place.device, place.dtype, [*setups, *near])
    sets: dict[str, ImageSet] = {}
    if prompts is not None and measures.metrics is not None:
        sets = draw_all(session, [*setups, *near], prompts, place, out / SAMPLES, state)
    if not state.is_main_process:
        return None
    report = Report("", {setup.name: setup.facts for setup in setups})
    if measures.costs:
        records, timelines = costs_of(session, setups, measures, place, out)
        report = replace(report, records=under(COST, records), timelines=timelines)
        report.protocols[COST] = _cost_card(setups, measures.rounds, place)
    fused = {each.told: one.name for one in reversed(setups) if one.model for each in one.model.adapters}
    report.notes.extend(f"{name}: {told}." for told, name in reversed(fused.items()))
    return _judged(report, session, setups, measures, place, sets) if sets else report


def draw_all(
    session: Session, setups: Sequence[Setup], prompts: PromptList, place: Place, folder: Path, state: PartialState
) -> dict[str, ImageSet]:
    """Draw what is missing, every process its share; all images are there when this returns. Those of another origin
    go away."""
    sets = {setup.name: ImageSet(folder / setup.name, len(prompts.prompts)) for setup in setups}
    if state.is_main_process:
        for setup in setups:
            # all that images depend on; on a GPU their last bits depend on the batch, too
            drawn = {"prompts": prompts.title, "size": place.size, "seed": place.seed, "versions": versions()}
            batch = {"batch": place.batch} if place.device.type != "cpu" else {}
            where = {"device": place.device.type, "dtype": str(place.dtype)}
            sets[setup.name].claim({**drawn, **where, **batch, **setup.origin()})
    state.wait_for_everyone()
    share = Share(state.process_index, state.num_processes)
    for setup in setups:
        target = sets[setup.name]
        wanted = target.missing(share.of(range(target.count), place.batch, place.device))
        if not wanted:
            continue
        settings = sampling(setup, place)
        with blame(setup.name, "drawing"), session.stage(setup) as (pipe, _):
            how: dict[str, Any] = {**ways_to_draw(setup.patches), "what": f"drawing with {setup.name}"}
            for index, image in draw(pipe, prompts.prompts, wanted, settings, given=prompts.given, **how):
                target.save(index, image)
    state.wait_for_everyone()
    for name, images in sets.items():
        if absent := len(images.absent()):
            raise RunError(f"{name!r}: {absent} of {images.count} pictures are missing; run the same command again")
    return sets


def fidelity(  # noqa: PLR0913 - who draws what, and where
    metric: str,
    session: Session,
    plain: Setup,
    setups: Sequence[Setup],
    prompts: PromptList,
    place: Place,
    folder: Path,
    state: PartialState,
) -> list[float]:
    """Of each set-up, the mean over its pictures of a metric that compares with the plain ones'; all are drawn, by all
    processes."""
    sets = draw_all(session, [plain, *setups], prompts, place, folder, state)
    near = {setup.name: partial(distances.compare, metric, sets[setup.name], sets[plain.name]) for setup in setups}
    found: list[float] = by_first(state, lambda: [float(each(place.device).mean()) for each in near.values()])
    return found


def sampling(setup: Setup, place: Place) -> SamplingSettings:
    return setup.sampling(place.size, place.seed, batch=place.batch)


# Costs ----------------------------------------------------------------------------------------------------------------


def costs_of(
    session: Session, setups: Sequence[Setup], measures: Measures, place: Place, out: Path
) -> tuple[list[Record], list[Timeline]]:
    records = [record for setup in setups for record in on_paper(setup, place.size)]
    rounds, drawing = measures.rounds, [setup for setup in setups if setup.draws]
    if measures.unet and rounds:
        single, origin = [setup for setup in setups if setup.one_unet], _timed_as(setups, rounds, place)
        measured: dict[str, Callable[[], list[Record]]] = {
            **{f"memory-{each}": partial(memory, session, setup, place.size) for each, setup in enumerate(setups)},
            "unet-calls": lambda: unet_calls(session, single, rounds) if single else [],
            "blocks": lambda: by_block(session, single, place.size),
            "plans": lambda: plan_calls(session, setups, rounds),
        }
        for part, make in measured.items():
            records += kept_records(out / SAMPLES / f"{part}.json", origin, make)
    counts = kept(out / SAMPLES / "counts.json", _made_as(setups, place), partial(_counted, session, drawing, place))
    records += [Record(**each) for each in counts["records"]]
    if rounds and drawing:
        records += _image_times(session, drawing, rounds, place, out)
    return records, [Timeline(**each) for each in counts["timelines"]]


def _counted(session: Session, setups: Sequence[Setup], place: Place) -> dict[str, list[dict[str, Any]]]:
    """Records and timelines of what is counted while each draws."""
    counted = {setup.name: _count(session, setup, place) for setup in track(setups, "counting", len(setups))}
    records: list[Record] = []
    for name, (counts, stats) in counted.items():
        against = setups[0].name
        unet, first = (counted[each][0].components["unet"].total for each in (name, against))
        by_name = {"calls": counts.calls, "latents": counts.rows, "image_macs_g": unet / 1e9}
        by_name["plain_image_macs_g"] = counts.components["unet"].plain / 1e9
        more = {"full_calls": stats.full_calls, "cache_mb": stats.cache_bytes and stats.cache_bytes / 1e6}
        by_name |= {key: value for key, value in more.items() if value is not None} | stats.figures
        records += [Record(name, metric, value) for metric, value in by_name.items()]
        records.append(Record(name, "macs_share", unet / first, against=against))
        parts = {f"component/{part}": each.total / 1e9 for part, each in counts.components.items()}
        records += [Record(name, "image_macs_g", value, of=part) for part, value in parts.items()]
    timelines = _timelines(setups, {name: stats for name, (_, stats) in counted.items()})
    return {"records": [*map(asdict, records)], "timelines": [*map(asdict, timelines)]}


def _count(session: Session, setup: Setup, place: Place) -> tuple[Counts, Stats]:
    """While one image is really drawn: nothing is assumed of the sampler, the guidance, or what a patch leaves out."""
    with session.stage(setup) as (pipe, stats):
        counts = count(setup.name, networks(pipe), image_call(pipe, setup, place.size))
        return counts, stats()


def _image_times(session: Session, setups: Sequence[Setup], rounds: Rounds, place: Place, out: Path) -> list[Record]:
    found: list[Record] = []
    for batch in sorted({1, *rounds.batches}):
        origin = {**_timed_as(setups, rounds, place), "batch": batch}
        file = out / SAMPLES / f"times-{batch}.json"

        def timed(batch: int = batch) -> Times:
            return image_times(session, setups, rounds, place, batch)

        taken = kept(file, origin, timed)
        of = "" if batch == 1 else f"batch/{batch}"
        whole, unet = ({name: each[part] for name, each in taken.items()} for part in ("image", "unet"))
        speeds = ratios("image_speedup", whole, of)
        found += [*times("image_ms", whole, of), *speeds, *([] if of else three_ways(speeds))]
        found += [*times("denoising_ms", unet, of), *ratios("denoising_speedup", unet, of)]
        for name, seconds in whole.items():
            found.append(Record(name, "images_per_s", batch / median(seconds), of=f"batch/{batch}"))
    return found


def _timed_as(setups: Sequence[Setup], rounds: Rounds, place: Place) -> dict[str, Any]:
    """All that times depend on."""
    return {**_rounds(rounds), **_made_as(setups, place)}


def _made_as(setups: Sequence[Setup], place: Place) -> dict[str, Any]:
    whole = [{"name": one.name, **one.origin(), "configs": one.configs} for one in setups]
    where = {"size": place.size, "machine": {**machine(place.device), "dtype": str(place.dtype)}}
    return {**where, "setups": whole}


def image_times(session: Session, setups: Sequence[Setup], rounds: Rounds, place: Place, batch: int) -> Times:
    """An image a round with everybody in turn; putting a set-up in force is not timed."""
    by_name, seconds = {setup.name: setup for setup in setups}, stopwatch(place.device)
    taken: Times = {name: {"image": [], "unet": []} for name in by_name}
    doing, total = f"timing images, batch {batch}", len(by_name) * (rounds.warmups + rounds.repeats)
    for name in track(round_robin(list(by_name), rounds.warmups + rounds.repeats), doing, total):
        setup = by_name[name]
        with session.stage(setup) as (pipe, _), blame(name, doing), clocked({"unet": pipe.unet}, place.device) as unet:
            taken[name]["image"].append(seconds(image_call(pipe, setup, place.size, batch)))
            taken[name]["unet"].append(sum(unet()["unet"]))
    return {name: {part: each[part][rounds.warmups :] for part in each} for name, each in taken.items()}


def by_first(state: PartialState, make: Callable[[], Any]) -> Any:
    """What the first process makes, told to all: no two measure, choose or write the same."""
    return broadcast_object_list([make() if state.is_main_process else None])[0]


def kept(file: Path, origin: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """What an earlier run left in `file`, if it is of this origin; else made now, and left there."""
    if (found := recalled(file, origin)) is not None:
        return found
    keep(file, origin, found := make())
    return json.loads(json.dumps(found))


def kept_records(file: Path, origin: Mapping[str, Any], make: Callable[[], list[Record]]) -> list[Record]:
    return [Record(**each) for each in kept(file, origin, lambda: [asdict(record) for record in make()])]


def keep(file: Path, origin: Mapping[str, Any], found: Any) -> None:
    """For `recalled`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"origin": origin, "found": found}, shared=True)


def recalled(file: Path, origin: Mapping[str, Any]) -> Any:
    """What `kept` or `keep` left in `file`, or None."""
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged
        return None
    mine = isinstance(held, dict) and held.get("origin") == json.loads(json.dumps(origin))
    return held.get("found") if mine else None


def _timelines(setups: Sequence[Setup], stats: Mapping[str, Stats]) -> list[Timeline]:
    """Who serves which call of those in which UNets take turns; and what each call computes by the first plan."""
    found = []
    served = {name: each.served for name, each in stats.items() if each.served and len(set(each.served)) > 1}
    if served:
        calls = len(next(iter(served.values())))
        alike = {name: each for name, each in served.items() if len(each) == calls}
        found.append(who_serves(alike, [unet for each in alike.values() for unet in each if unet not in NULLS]))
    for setup in setups:
        reused = stats[setup.name].reused.get("unet", [])
        if setup.cache is not None and reused and setup.series != CONVERGED:
            found.append(picture(resolve(setup.cache, setup.config), reused, setup.name))
            break
    return found


def told_of(rounds: Rounds) -> Card:
    return {**_rounds(rounds), "order": ORDER_RULE}


def _rounds(rounds: Rounds) -> dict[str, Any]:
    return {"rounds": rounds.repeats, "warmup_rounds": rounds.warmups, "batches": list(rounds.batches)}


def _cost_card(setups: Sequence[Setup], rounds: Rounds | None, place: Place) -> Card:
    given = next((setup.given.name for setup in setups if setup.given), "")
    timed: Card = {} if rounds is None else told_of(rounds)
    return {
        **measured_on(place.device),
        "dtype": str(place.dtype).removeprefix("torch."),
        "size_px": place.size or "each model's own",
        **timed,
        "guidance": _guidance(setups),
        "latency": "wall time between idle device and idle device; median between quartiles",
        "speed_up": "median over rounds of (time of the first / time of this), both of one round",
        "macs": "FLOPs of torch's FlopCounterMode / 2, counted while an image is drawn; of a call, on one latent",
        "peak_memory": HOW.get(place.device.type, ""),
        **({"drawn_from": given} if given else {}),
        "contestants": [f"{setup.name}: {setup.source}, {setup.steps} steps" for setup in setups],
    }


# Quality --------------------------------------------------------------------------------------------------------------


def _judged(
    report: Report,
    session: Session,
    setups: Sequence[Setup],
    measures: Measures,
    place: Place,
    sets: Mapping[str, ImageSet],
) -> Report:
    """With what the images are worth, real ones beside them, and which images to show."""
    prompts = measures.prompts
    assert measures.metrics is not None, "asked for only where there is something to judge"
    assert prompts is not None, "asked for only where there is something to judge"
    assert place.size is not None, "images to be judged have one size"
    settings, reference = measures.metrics, measures.reference or setups[0].name
    out = sets[reference].folder.parents[1]
    real = real_set(prompts, place.size, out / "real") if prompts.real and against_real(settings.metrics) else None
    suite = MetricSuite(settings, prompts, reference, sets[reference], real, out, place.device)
    records: list[Record] = []
    for setup in track(setups, "comparing pictures", len(setups)):
        records += suite.measure(setup.name, sets[setup.name])
    if measures.converged is not None:  # how far everybody is from the images near the solution
        settings_near = replace(settings, metrics=("psnr",))
        near = replace(suite, settings=settings_near, against=CONVERGED, reference=sets[CONVERGED])
        found = [record for setup in setups for record in near.measure(setup.name, sets[setup.name])]
        records += [replace(record, metric="psnr_converged_db") for record in found]
    shown = {setup.name: sets[setup.name] for setup in setups}
    if real is not None:
        through = ImageSet(out / "real-vae", prompts.distinct)
        model = setups[0].model
        assert model is not None, "only set-ups with a pipeline draw"
        through.claim({**real_origin(prompts, place.size), "files": stamps(model)})
        with session.stage(setups[0]) as (pipe, _):  # where models take turns on a device, it is there now
            reconstruct(pipe.vae, real, through)
        records += [*suite.measure(VAE, through, paired=False), *suite.measure_real(REAL)]
        report.setups.update({name: {"reference": True} for name in (VAE, REAL)})
        shown |= {VAE: through, REAL: real.first(prompts.distinct)}
    if prompts.given:
        pictures = ImageSet(out / INPUTS, min(measures.grid, len(prompts.given)))
        masked = any("mask" in PIPELINES[setup.kind].takes for setup in setups)
        pictures.claim({"prompts": prompts.title, "masked": masked})
        for index in pictures.missing():
            pictures.save(index, prompts.given[index].shown(masked))
        report.setups[INPUTS], shown[INPUTS] = {"reference": True}, pictures
    report.records.extend(under(QUALITY, records))
    report.protocols[QUALITY] = _quality_card(setups, prompts, place, suite, measures.converged)
    first = list(prompts.prompts[: measures.grid])
    folders = {name: images.folder.relative_to(out).as_posix() for name, images in shown.items()}
    report.notes.extend(_notes(settings, reference, len(prompts.prompts), real is not None))
    return replace(report, images=Images(first, folders))


def _quality_card(
    setups: Sequence[Setup], prompts: PromptList, place: Place, suite: MetricSuite, converged: Setup | None
) -> Card:
    samplers = {setup.name: _sampler(setup) for setup in setups}
    alike = set(samplers.values())
    drawn: Card = {
        "prompts": prompts.title,
        "pictures": len(prompts.prompts),
        "resolution": f"{place.size} x {place.size}",
        "sampler": alike.pop() if len(alike) == 1 else [f"{name}: {each}" for name, each in samplers.items()],
        "guidance": _guidance(setups),
        "seed_rule": f"numpy SeedSequence([{place.seed}, index of the prompt]), a CPU generator per picture",
        "device": place.device.type,
        "dtype": str(place.dtype).removeprefix("torch."),
        "versions": versions(),
    }
    batch: Card = {"batch": place.batch} if place.device.type != "cpu" else {}
    near: Card = {"converged": f"{converged.steps} steps, {_sampler(converged)}"} if converged else {}
    return {**drawn, **batch, **near, **suite.protocol()}


def _guidance(setups: Sequence[Setup]) -> float | list[str]:
    alike = {setup.guidance for setup in setups}
    return alike.pop() if len(alike) == 1 else [f"{setup.name}: {setup.guidance:g}" for setup in setups]


def _sampler(setup: Setup) -> str:
    own = setup.model.index["scheduler"][1] if setup.model else ""
    return f"own: {own}" if setup.sampler == "own" else f"{setup.sampler}, set up as {own}"


def _notes(settings: MetricSettings, reference: str, count: int, real: bool) -> list[str]:
    notes = []
    if real:
        notes.append(
            "Real pictures after the VAE are the best that its latents allow. The KID of the real pictures is that of "
            "one half of them from the other."
        )
    if {"fd", "fd_original"} & set(settings.metrics) and count < FEW_FOR_FRECHET:
        notes.append(f"FD is far too high below {FEW_FOR_FRECHET} pictures (here {count}): trust KID.")
    if "reference" in needed(settings.metrics):
        notes.append(f"PSNR, SSIM, perceptual distance and FD to the original's compare with those of {reference}.")
    if "psnr" in settings.metrics:
        notes.append("Equal pictures count as 100 dB.")
    return notes


def finished(report: Report | None, verb: str, **facts: Any) -> Report:
    """The report of a verb; of processes but the first an empty one, which nobody writes."""
    if report is None:
        return Report(verb)
    return replace(report, verb=verb, facts={**report.facts, **facts})
