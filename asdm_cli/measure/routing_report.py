"""What a report says of experts: a table of all routers, and the two of them that choose most."""

from __future__ import annotations

from asdm_cli.measure.routing import Routing
from asdm_cli.report.document import Bars, Cell, Column, Curves, Interval, Part, Table

SHOWN_PROMPTS = 12


def routing_parts(routing: Routing, who: str, card: str = "") -> list[Part]:
    """`who` is the model; nothing where there are no experts."""
    if not routing.weights:
        return []
    spreads = {name: routing.spread(name) for name in routing.weights}
    timed = max(spreads, key=lambda name: spreads[name]["over_calls"])
    told = max(spreads, key=lambda name: spreads[name]["over_prompts"])
    return [_table(routing, spreads, who, card), _by_call(routing, timed, who), _by_prompt(routing, told, who)]


def _table(routing: Routing, spreads: dict[str, dict[str, float]], who: str, card: str) -> Table:
    rows: list[dict[str, Cell | Interval]] = [
        {"layer": name, "mean": ", ".join(f"{weight:.2f}" for weight in routing.mean(name)), **spread}
        for name, spread in spreads.items()
    ]
    columns = [
        Column("layer", "convolution"),
        Column("mean", "mean weights"),
        Column("effective", "experts in effect"),
        Column("over_calls", "varies over UNet calls", digits=3),
        Column("over_prompts", "over prompts", digits=3),
        Column("between_rows", "with and without prompt", digits=3),
    ]
    note = (
        f"Routing weights over {len(routing.prompts)} prompts: their means, and how far they vary (standard deviation, "
        "mean over experts). A router that varies with nothing can be folded without loss."
    )
    return Table(f"How the experts of {who} are used", columns, rows, note, card)


def _by_call(routing: Routing, name: str, who: str) -> Curves:
    weights = routing.by_call(name)
    lines = {
        f"expert {expert + 1}": [(float(call), float(each)) for call, each in enumerate(weights[:, expert])]
        for expert in range(weights.shape[1])
    }
    note = "The convolution whose weights vary most over UNet calls."
    return Curves(f"{who}: {name}, from noise to picture", "UNet call", "weight", lines, note=note)


def _by_prompt(routing: Routing, name: str, who: str) -> Bars:
    weights = routing.by_prompt(name)[:SHOWN_PROMPTS]
    values = {
        f"expert {expert + 1}": [float(each) for each in weights[:, expert]] for expert in range(weights.shape[1])
    }
    note = "The convolution whose weights vary most over prompts; means over UNet calls."
    return Bars(f"{who}: {name}, by prompt", "weight", list(routing.prompts[: len(weights)]), values, note)
