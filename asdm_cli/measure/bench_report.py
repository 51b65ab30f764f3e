"""Tables, bars and the protocol card of a benchmark. Speed-ups are the first contestant's time over this one's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from asdm_cli.measure.bench import Measurement
from asdm_cli.measure.contestants import Entrant, bodies
from asdm_cli.measure.plan_tables import plan_tables
from asdm_cli.profiling.latency import ORDER_RULE, PASSES, quartiles, speedup
from asdm_cli.profiling.machine import machine
from asdm_cli.profiling.macs import Count
from asdm_cli.profiling.memory import HOW
from asdm_cli.records import Card
from asdm_cli.report.document import Bars, Cell, Column, Interval, Report, Table
from asdm_cli.unet.cost import rows

Row = dict[str, Cell | Interval]

CARD = "bench"
UNET_CALL, WHOLE_IMAGE = "UNet call", "whole image"
CONTESTANT = Column("name", "contestant")
PARAMETERS = Column("params_m", "parameters (M)")
MACS = Column("macs_g", "MACs (G)")
PLAIN_MACS = Column("macs_without_attention_g", "without attention matmuls (G)")
SPEEDUP = Column("speedup", "speed-up", "higher", 3)


def report(measured: Measurement) -> Report:
    names = [entrant.name for entrant in measured.entrants]
    return Report(
        verb="bench",
        title=f"Cost of {', '.join(names)}",
        summary=_summary(measured),
        parts=[
            _overview(measured),
            *_speeds(measured),
            _throughput(measured),
            _components(measured),
            *_blocks(measured),
            *plan_tables(measured.entrants, measured.plan_times, measured.protocol.guidance, CARD),
        ],
        cards={CARD: _card(measured)},
    )


def _summary(measured: Measurement) -> str:
    calls, images = measured.unet_times.get(1, {}), measured.image_times.get(1, {})
    against = next(iter(calls or images))
    sentences = [f"{len(measured.entrants)} contestants took turns; speed-ups are against {against}."]
    several = [entrant.name for entrant in measured.entrants[1:] if entrant.switch]
    for what, times, names in (("A UNet call", calls, list(calls)[1:]), ("An image", images, several)):
        for name in names:
            ratio = _speedup(times, name)
            cut = f"latency cut {100 * (1 - 1 / ratio.value):.1f} %, throughput gain {100 * (ratio.value - 1):.1f} %"
            sentences.append(f"{what} of {name}: speed-up {ratio.value:.3f} ({cut}).")
    return " ".join(sentences)


def _overview(measured: Measurement) -> Table:
    image = bool(measured.image_times)
    columns = [
        CONTESTANT,
        Column("latent", "latent"),
        Column("unet_params_m", "UNet parameters (M)", "lower"),
        Column("unet_macs_g", "UNet call MACs (G)", "lower"),
        Column("unet_macs_without_attention_g", PLAIN_MACS.title, "lower"),
        Column("unet_ms", "UNet call (ms)", "lower"),
        Column("image_macs_g", "image MACs (G)", "lower"),
        Column("image_ms", "image (ms)", "lower"),
        Column("weights_mb", "weights (MB)", "lower", 1),
        Column("peak_memory_mb", "peak memory (MB)", "lower", 1),
    ]
    guidance = measured.protocol.guidance
    note = (
        "MACs of a UNet call are those of one latent; its latency is that of one image, "
        f"{_latents(measured)} latents at guidance {guidance:g}. "
        "Peak memory is that of an image where images are timed, else of a UNet call."
    )
    if any(entrant.switch for entrant in measured.entrants):
        note += " Where several UNets take turns, parameters are those of all; their calls are not alike: see images."
    shown = [column for column in columns if image or not column.key.startswith("image_")]
    return Table("Cost", shown, [_overview_row(measured, entrant) for entrant in measured.entrants], note, CARD)


def _latents(measured: Measurement) -> str:
    """In the UNet call of an image; contestants may differ in it."""
    counts = {rows(entrant.config, measured.protocol.guidance) for entrant in measured.entrants}
    return " or ".join(map(str, sorted(counts)))


def _overview_row(measured: Measurement, entrant: Entrant) -> Row:
    profile = measured.profiles[entrant.name]
    drawn = measured.image_times.get(1, {}).get(entrant.name)
    return {
        "name": entrant.name,
        "latent": "×".join(map(str, entrant.latent)),
        "unet_params_m": sum(entrant.parameters.values()) / 1e6,
        "unet_macs_g": None if entrant.switch else entrant.macs.total / 1e9,
        "unet_macs_without_attention_g": None if entrant.switch else entrant.macs.plain / 1e9,
        "unet_ms": None if entrant.switch else quartiles(measured.unet_times[1][entrant.name], 1e3),
        "image_macs_g": profile.trajectory.whole.total / 1e9 if profile.trajectory else None,
        "image_ms": quartiles(drawn, 1e3) if drawn else None,
        "weights_mb": profile.memory.weights / 1e6,
        "peak_memory_mb": profile.memory.peak / 1e6,
    }


def _speeds(measured: Measurement) -> list[Table]:
    """One table that says each ratio in all three ways it is published in; none with a single contestant."""
    series = [(UNET_CALL, measured.unet_times), (WHOLE_IMAGE, measured.image_times)]
    rows = [row for what, times in series for row in _speed_rows(what, times.get(1, {}))]
    if not rows:
        return []
    columns = [
        CONTESTANT,
        Column("what", "what"),
        Column("against", "against"),
        SPEEDUP,
        Column("latency_cut_pct", "latency cut (%)", "higher", 1),
        Column("throughput_gain_pct", "throughput gain (%)", "higher", 1),
    ]
    note = "Speed-up: median over rounds of (time of `against` / time of the contestant), both from the same round."
    return [Table("Speed, one image at a time", columns, rows, note, CARD)]


def _speed_rows(what: str, times: dict[str, list[float]]) -> Iterable[Row]:
    for name in list(times)[1:]:
        ratio = _speedup(times, name)
        yield {
            "what": what,
            "name": name,
            "against": next(iter(times)),
            "speedup": ratio,
            "latency_cut_pct": 100 * (1 - 1 / ratio.value),
            "throughput_gain_pct": 100 * (ratio.value - 1),
        }


def _throughput(measured: Measurement) -> Table:
    columns = [
        CONTESTANT,
        Column("batch", "images at once", digits=0),
        Column("image_steps_per_s", "denoising steps of an image per second", digits=3),
        Column("unet_speedup", "UNet speed-up", digits=3),
        Column("images_per_s", "images per second", digits=4),
        Column("image_speedup", "image speed-up", digits=3),
    ]
    whole = ("images_per_s", "image_speedup")
    shown = [column for column in columns if measured.image_times or column.key not in whole]
    rows = [
        _throughput_row(measured, entrant.name, batch)
        for batch in measured.protocol.batches
        for entrant in measured.entrants
    ]
    return Table("Throughput", shown, rows, "Images at once over the median time; a step is one UNet call.", CARD)


def _throughput_row(measured: Measurement, name: str, batch: int) -> Row:
    unet, image = measured.unet_times.get(batch, {}), measured.image_times.get(batch, {})
    return {
        "name": name,
        "batch": batch,
        "image_steps_per_s": batch / quartiles(unet[name]).value if name in unet else None,
        "unet_speedup": _speedup(unet, name) if name in unet else None,
        "images_per_s": batch / quartiles(image[name]).value if name in image else None,
        "image_speedup": _speedup(image, name) if name in image else None,
    }


def _speedup(times: dict[str, list[float]], name: str) -> Interval:
    return speedup(next(iter(times.values())), times[name])


def _components(measured: Measurement) -> Table:
    columns = [
        CONTESTANT,
        Column("component", "component"),
        PARAMETERS,
        Column("calls", "calls", digits=0),
        MACS,
        PLAIN_MACS,
    ]
    rows = [row for entrant in measured.entrants for row in _component_rows(measured, entrant)]
    note = (
        "MACs are those of one whole image, counted at the dispatcher while it was drawn (UNet calls and their "
        "latents as they happened); `vae` counts decoding only. Of a contestant that draws none: of one UNet call."
    )
    return Table("Components", columns, rows, note, CARD)


def _component_rows(measured: Measurement, entrant: Entrant) -> Iterable[Row]:
    profile = measured.profiles[entrant.name]
    drawn = profile.trajectory
    counts = drawn.components if drawn else {"unet": Count(entrant.macs.total, entrant.macs.plain)}
    for component, parameters in profile.component_parameters.items():
        yield _component_row(entrant.name, component, parameters, counts.get(component, Count())) | {
            "calls": (drawn.calls if drawn else 1) if component == "unet" else None
        }
    if drawn:
        yield _component_row(entrant.name, "all", sum(profile.component_parameters.values()), drawn.whole)


def _component_row(name: str, component: str, parameters: int, count: Count) -> Row:
    return {
        "name": name,
        "component": component,
        "params_m": parameters / 1e6,
        "calls": None,
        "macs_g": count.total / 1e9,
        "macs_without_attention_g": count.plain / 1e9,
    }


def _blocks(measured: Measurement) -> list[Table | Bars]:
    time = Column("time_ms", "time (ms)")
    columns = [CONTESTANT, Column("block", "block"), PARAMETERS, MACS, PLAIN_MACS, time]
    unlike = [entrant for entrant in bodies(measured.entrants).values() if not entrant.switch]
    if not unlike:
        return []
    rows = [row for entrant in unlike for row in _block_rows(measured, entrant)]
    note = (
        f"Of one UNet call. MACs of one latent; time of one image, median of {PASSES} profiling passes of their own "
        "with a clock at every block, so they do not sum to the latency above exactly."
    )
    return [
        Table("UNet by block", columns, rows, note, CARD),
        *(_block_bars(entrant.name, _block_rows(measured, entrant)) for entrant in unlike),
    ]


def _block_rows(measured: Measurement, entrant: Entrant) -> list[Row]:
    seconds = measured.profiles[entrant.name].block_seconds
    return [
        {
            "name": entrant.name,
            "block": block,
            "params_m": parameters / 1e6,
            "macs_g": entrant.macs.blocks[block] / 1e9,
            "macs_without_attention_g": entrant.macs.plain_blocks[block] / 1e9,
            "time_ms": seconds[block] * 1e3,
        }
        for block, parameters in entrant.parameters.items()
    ]


def _block_bars(name: str, rows: list[Row]) -> Bars:
    series = {"parameters": "params_m", "MACs": "macs_g", "time": "time_ms"}
    return Bars(
        f"Shares of each block: {name}",
        "%",
        [str(row["block"]) for row in rows],
        {title: _shares([row[key] for row in rows]) for title, key in series.items()},
    )


def _shares(values: list[Cell | Interval]) -> list[float]:
    numbers = [float(value) for value in values]  # type: ignore[arg-type]
    return [100 * number / sum(numbers) for number in numbers]


def _card(measured: Measurement) -> Card:
    protocol = measured.protocol
    return {
        **machine(protocol.device),
        "dtype": str(protocol.dtype).removeprefix("torch."),
        "size_px": protocol.size or "each model's own",
        "guidance": protocol.guidance,
        "latents_per_image_in_a_unet_call": _latents(measured),
        "contestants": [_described(measured, entrant) for entrant in measured.entrants],
        "batches": ", ".join(map(str, protocol.batches)),
        "rounds": protocol.repeats,
        "warmup_rounds": protocol.warmups,
        "order": ORDER_RULE,
        "latency": "wall time between idle device and idle device; median between quartiles",
        "macs": "FLOPs of torch's FlopCounterMode / 2",
        "peak_memory": HOW[protocol.device.type],
    }


def _described(measured: Measurement, entrant: Entrant) -> str:
    profile = measured.profiles[entrant.name]
    if profile.trajectory is None:
        return f"{entrant.name}: {entrant.source}, {entrant.tokens} text tokens, UNet calls only"
    calls = f"{profile.trajectory.calls} UNet calls with {profile.trajectory.rows} latents"
    if profile.served:
        calls += f" ({', '.join(f'{count} by {name}' for name, count in Counter(profile.served).items())})"
    return f"{entrant.name}: {entrant.source}, {profile.sampler}, {entrant.steps} steps = {calls} per image"
