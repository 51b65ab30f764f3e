"""What is timed at real size: shapes of UNets, and ways of drawing with them. No GPU is needed to say what they are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from asdm_cli.compare.costs import FULL, pattern_macs
from asdm_cli.experts.convert import expand
from asdm_cli.patches.cache_plan import ResolvedPlan, Reused, resolve
from asdm_cli.recipe.patches import read_plan
from asdm_cli.unet.blocks import Spec, preset
from asdm_cli.unet.flops import macs
from asdm_cli.unet.surgery import remove

STEPS = 50
EARLY = {"mode": "early", "interval": 3, "power": 1.3}
BLOCK, UP, OUT = ({"rules": [{"nodes": nodes, "schedule": EARLY, "order": 1}]} for nodes in ("up.3", "up.2", "out"))
DEEP = {"preset": "deepcache", "branch": 0, "interval": 3}
TEXT = {
    "rules": [{"nodes": "deepcache.0", "schedule": {"mode": "uniform", "interval": 3}}],
    "cache_text": False,
}
LAYER = {"preset": "base-mask", "interval": 2}
UNIT = {"rules": [{"nodes": "*.attn", "cache": "residual", "schedule": {"mode": "uniform", "interval": 3}}]}
INTERVAL = (0.1, 0.7)
"""Of the calls, those with guidance; by timestep from 900 to 300."""
HALF = ", one half"
"""Of a call outside the interval, beside its pattern."""
ASSEMBLED = ("down.0.1", "down.1.1", "up.2.1", "up.3.1")


@dataclass(frozen=True)
class Way:
    """A UNet's shape, and how it is called; `rows` are an image's latents in one call, two with guidance. `guided`:
    only between these shares of the calls, elsewhere there is one row."""

    name: str
    shape: str = "sd15"
    removed: str | tuple[str, ...] = ()
    experts: int = 0
    plan: Any = field(default=None, compare=False)
    channels_last: bool = False
    compiled: str | None = None
    rows: int = 2
    guided: tuple[float, float] | None = None

    def config(self, tiny: bool = False) -> dict[str, Any]:
        if tiny:
            from tests.tiny import SHAPES

        stock = SHAPES[self.shape] if tiny else preset(self.shape)
        config = remove(stock, self.removed).config if self.removed else stock
        return expand(config, Spec(self.experts), None, stock).config if self.experts else config

    def resolved(self, tiny: bool = False) -> ResolvedPlan | None:
        """Raises AsdmError for what this version has no plan for."""
        return resolve(read_plan(self.plan), self.config(tiny)) if self.plan else None

    def halves(self) -> dict[str, int]:
        """What is added to a pattern's name -> rows of an image's call."""
        return {"": self.rows, **({HALF: 1} if self.guided else {})}

    def counts(self, tiny: bool = False) -> dict[str, int]:
        """How many calls of a generation are of which pattern."""
        resolved = self.resolved(tiny)
        steps = resolved.steps(STEPS) if resolved else None
        start, until = self.guided or (0.0, 1.0)
        found: Counter[str] = Counter()
        for call in range(STEPS):
            half = "" if start <= call / STEPS < until else HALF
            found[label(steps.reused(call) if steps else FULL) + half] += 1
        return dict(found)

    def generation_macs(self, tiny: bool = False) -> float:
        """Multiply-accumulates of a generation, one latent a row."""
        resolved, config = self.resolved(tiny), self.config(tiny)
        costs = pattern_macs(config, resolved, STEPS) if resolved else {FULL: macs(config)}
        each = {
            label(pattern) + half: rows * cost.total
            for pattern, cost in costs.items()
            for half, rows in self.halves().items()
        }
        return sum(count * each[name] for name, count in self.counts(tiny).items())


def label(pattern: Reused) -> str:
    return "+".join(f"rule {rule}" for rule in sorted(pattern)) or "full"


SD15 = (
    Way("plain"),
    Way("channels last", channels_last=True),
    Way("without guidance", rows=1),
    Way("block", plan=BLOCK),
    Way("layer", plan=LAYER),
    Way("unit", plan=UNIT),
    Way("deepcache", plan=DEEP),
    Way("deepcache, text every call", plan=TEXT),
    Way("output", plan=OUT),
    Way("guidance interval", guided=INTERVAL),
    Way("guidance interval, output", plan=OUT, guided=INTERVAL),
    Way("guidance interval, block", plan=BLOCK, guided=INTERVAL),
    Way("base", removed="base"),
    Way("small", removed="small"),
    Way("tiny", removed="tiny"),
    Way("1122", removed=ASSEMBLED),
    Way("base, deepcache", removed="base", plan=DEEP),
    Way("1122, deepcache", removed=ASSEMBLED, plan=DEEP),
    Way("base, 4 experts", removed="base", experts=4),
)
SDXL = (
    Way("plain", "sdxl"),
    Way("block", "sdxl", plan=UP),
    Way("deepcache", "sdxl", plan=DEEP),
    Way("output", "sdxl", plan=OUT),
    Way("guidance interval, output", "sdxl", plan=OUT, guided=INTERVAL),
    Way("base", "sdxl", removed="base"),
)
SD21 = (
    Way("plain", "sd21"),
    Way("block", "sd21", plan=BLOCK),
    Way("deepcache", "sd21", plan=DEEP),
    Way("base", "sd21", removed="base"),
)
_PLAIN, *_COMPILED = (
    replace(next(way for way in SD15 if way.name == name), channels_last=True, compiled=mode)
    for mode in ("default", "reduce-overhead")
    for name in ("plain", "block", "1122", "deepcache, text every call", "guidance interval, output")
)
GROUPS = {"sd15": [SD15], "sizes": [SDXL, SD21], "compiled": [(_PLAIN, way) for way in _COMPILED]}
"""Part -> those who take turns; the first of each is what the others are held against."""
