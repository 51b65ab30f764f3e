"""Print what keeping and forecasting features takes at real size.

python scripts/forecast_cost.py [SHAPE] [DTYPE] [ROWS]

SHAPE is sd15 (default), sd21, sdxl or a UNet config file; DTYPE bfloat16 by default; ROWS of a call 2, with guidance.
A difference of two UNet calls, seconds long here, could not resolve it; so the features alone are kept and handed on.
"""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import Any

import torch
from asdm_cli.inheritance.engine import Engine
from asdm_cli.inheritance.generation import Generation, Memory
from asdm_cli.verbs.bench import random_config

from asdm_cli.models.load import DTYPES
from asdm_cli.recipe.patches import read_plan
from asdm_cli.unet.flops import inputs, meta_unet

PLANS: dict[str, dict[str, Any]] = {
    "deepcache 0": {"preset": "deepcache"},
    "encoder": {"preset": "encoder-propagation"},
    "base mask": {"preset": "base-mask"},
    "all transformers": {
        "rules": [{"nodes": "*.attn", "carry": "residual", "schedule": {"mode": "uniform", "interval": 2}}]
    },
}
ROUNDS = 20


def main(shape: str = "sd15", dtype: str = "bfloat16", rows: str = "2") -> None:
    print(f"{'plan':18} {'order':>5} {'features':>8} {'MB':>8} {'keep ms':>8} {'hand on ms':>10}")
    for name, plan in PLANS.items():
        features = _features(shape, plan, int(rows), DTYPES[dtype])
        for order in (0, 1, 2):
            memories = [Memory(order) for _ in features]
            keep, hand_on = _seconds(memories, features)
            held = sum(part.nbytes for each in memories for part in each.differences or ())
            print(
                f"{name:18} {order:5} {len(features):8} {held / 1e6:8.1f} {1e3 * keep:8.2f} {1e3 * hand_on:10.2f}",
                flush=True,
            )


def _features(shape: str, plan: dict[str, Any], rows: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Random ones in place of everything that the plan keeps."""
    config = random_config(shape, None)
    unet = meta_unet(config)
    engine = Engine(unet, read_plan(plan))
    with torch.no_grad(), engine.generation(2):
        unet(**{**inputs(config, batch=rows), "timestep": 500})
        generation = engine.current.generation
        assert isinstance(generation, Generation), "the call has begun it"
        kept = [memory.differences for memory in generation.memory.values()]
    return [torch.randn(each[0].shape).to(dtype) for each in kept if each]


def _seconds(memories: list[Memory], features: list[torch.Tensor]) -> tuple[float, float]:
    """Medians: of keeping all features at a key step, and of handing all on at the call after it."""
    keeping, handing = [], []
    for call in range(0, 2 * ROUNDS, 2):
        start = time.perf_counter()
        for memory, feature in zip(memories, features, strict=True):
            memory.prepare(call, keeps=True)
            memory.keep(feature)
        kept = time.perf_counter()
        for memory in memories:
            memory.prepare(call + 1, keeps=False)
            memory.hand_on()
        handing.append(time.perf_counter() - kept)
        keeping.append(kept - start)
    return median(keeping), median(handing)


if __name__ == "__main__":
    main(*sys.argv[1:])
