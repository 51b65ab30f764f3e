"""What a verb that changes a UNet says, before it does it and after: the model block by block, and what is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from asdm_cli.errors import ModelError
from asdm_cli.models.directory import ModelDirectory
from asdm_cli.models.write import carried_size, takes
from asdm_cli.report.document import Cell, Column, Interval, Part, Report, Table
from asdm_cli.unet.blocks import Config, read_blocks
from asdm_cli.unet.flops import latent_size, macs, parameters

COUNTED = "multiply-accumulates of one UNet call, attention's matmuls (QK^T and AV) and mixing of kernels included"
COLUMNS = {
    "layers": ("Layers before", "after"),
    "params_m": ("Parameters before (M)", "after (M)"),
    "macs_g": ("GMACs before", "after"),
}

Row = dict[str, Cell | Interval]


Counts = Mapping[str, float]
"""Block -> a figure."""


def change(  # noqa: PLR0913 - two models, and what to say of them
    verb: str,
    title: str,
    said: str,
    source: ModelDirectory,
    configs: tuple[Config, Config],
    written: int,
    made: Mapping[str, str],
    becomes: Mapping[str, str] | None = None,
    batch: int = 1,
) -> Report:
    """The UNet of `source`, and what becomes of it: `configs` before and after, `written` bytes of new weights.

    `made` says in words what is made how; `becomes` names the result's block for each of the source's that has
    another address there, and nothing for those that go.
    """
    figures: dict[str, tuple[Counts, Counts]] = {
        "layers": _both(configs, lambda config: {each.address: len(each.layers) for each in read_blocks(config)}),
        "params_m": _both(configs, lambda config: _scaled(parameters(config), 1e6)),
    }
    try:
        macs_g = _both(configs, lambda config: _scaled(macs(config, batch, tokens=source.tokens).blocks, 1e9))
        calls = _told(macs_g, " GMACs a call")
        figures["macs_g"] = macs_g
    except ModelError:
        calls = "what a call costs is not known"  # a figure stops no surgery
    taken = takes(written, carried_size(source, {"unet"}))
    summary = f"{said}: {_told(figures['params_m'], ' M parameters')}, {calls}. {taken}"
    old, left = figures["params_m"]
    rows: list[Row] = []
    for address in dict.fromkeys([*old, *left]):
        new = (becomes or {}).get(address, address)
        rows.append({"block": address, "becomes": new if new in left else "removed"})
        for key, (before, after) in figures.items():
            rows[-1] |= {f"{key}_before": before.get(address), f"{key}_after": after.get(new)}
    rows.append({"block": "all", "becomes": ""})
    heads = [Column("block", "Block"), Column("becomes", "Becomes")]
    for key, both in figures.items():
        for when, name, each in zip(("before", "after"), COLUMNS[key], both, strict=True):
            rows[-1][f"{key}_{when}"] = sum(each.values())
            heads.append(Column(f"{key}_{when}", name))
    words = [Column("part", "What"), Column("how", "is made how")]
    parts: list[Part] = [
        Table("Blocks before and after", heads, rows, card="macs", total=True),
        Table("What is made", words, [{"part": part, "how": how} for part, how in made.items()]),
    ]
    latent = " × ".join(map(str, latent_size(configs[1])))
    card: dict[str, Cell | list[str]] = {"counted": COUNTED, "batch": batch, "latent": latent, "tokens": source.tokens}
    return Report(verb, title, summary, parts, {"macs": card})


def _both(configs: tuple[Config, Config], count: Callable[[Config], Counts]) -> tuple[Counts, Counts]:
    return count(configs[0]), count(configs[1])


def _scaled(counts: Mapping[str, int], unit: float) -> Counts:
    return {address: count / unit for address, count in counts.items()}


def _told(counts: tuple[Counts, Counts], what: str) -> str:
    before, after = (sum(each.values()) for each in counts)
    return f"{before:.2f} → {after:.2f}{what} ({after / before - 1:+.1%})"
