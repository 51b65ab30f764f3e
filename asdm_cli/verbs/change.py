"""What a verb that changes a UNet says, before it does it and after: the model block by block, and what is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from asdm_cli.errors import ModelError
from asdm_cli.models.directory import ModelDirectory
from asdm_cli.models.write import carried_size, takes
from asdm_cli.records import Record, Report, under
from asdm_cli.unet.blocks import Config, read_blocks
from asdm_cli.unet.flops import macs, parameters
from asdm_cli.unet.shapes import latent_size

COUNTED = "multiply-accumulates of one UNet call, attention's matmuls (QK^T and AV) included"
PROTOCOL = "macs"
DONE = {"prune": "pruned", "assemble": "assembled", "condconv-expand": "converted"}
"""What the result of a verb is called."""


def change(  # noqa: PLR0913 - two models, and what to say of them
    verb: str,
    source: ModelDirectory,
    configs: tuple[Config, Config],
    written: int,
    made: Mapping[str, str],
    becomes: Mapping[str, str] | None = None,
    batch: int = 1,
) -> Report:
    """The UNet of `source`, and what becomes of it: `configs` before and after, `written` bytes of new weights.

    `made` says in words what is made how; `becomes` names the result's block for each of the source's that has
    another address there, and nothing for those that go. A figure that cannot be had stops no surgery.
    """
    result = DONE[verb] if source.name != DONE[verb] else f"{DONE[verb]} again"
    records = [
        record
        for name, config in zip((source.name, result), configs, strict=True)
        for record in figures(name, config, batch, source.tokens)
    ]
    counted = {record.setup for record in records if record.metric == "macs_g"}
    unknown = [name for name in (source.name, result) if name not in counted]
    moved = {block: to or "removed" for block, to in (becomes or {}).items() if to != block}
    facts = {"written": takes(written, carried_size(source)), **dict(made)}
    latent = " × ".join(map(str, latent_size(configs[1])))
    return Report(
        verb,
        {source.name: {"model": source.source}, result: {"written": ".", "made": [verb]}},
        under(PROTOCOL, records),
        {PROTOCOL: {"counted": COUNTED, "batch": batch, "latent": latent, "tokens": source.tokens}},
        facts={**facts, **({"blocks": moved} if moved else {})},
        notes=[f"{name}: what a call costs is not known, because such a UNet cannot be called." for name in unknown],
    )


def figures(name: str, config: Config, batch: int, tokens: int) -> Iterator[Record]:
    """Parameters, multiply-accumulates and layers, of all and of each block."""
    counts = parameters(config)
    yield Record(name, "params_m", sum(counts.values()) / 1e6)
    try:
        counted = macs(config, batch, tokens=tokens)
    except ModelError:
        counted = None
    if counted is not None:
        yield Record(name, "macs_g", counted.total / 1e9)
    for block in read_blocks(config):
        yield Record(name, "layers", len(block.layers), of=f"block/{block.address}")
    for block_name, count in counts.items():
        yield Record(name, "params_m", count / 1e6, of=f"block/{block_name}")
        if counted is not None:
            yield Record(name, "macs_g", counted.blocks[block_name] / 1e9, of=f"block/{block_name}")
