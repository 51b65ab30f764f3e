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

from asdm_cli.models.load import DTYPES
from asdm_cli.patches.feature_cache import FeatureCache
from asdm_cli.patches.feature_cache.forecast import Polynomial
from asdm_cli.patches.feature_cache.state import FeatureHistory
from asdm_cli.recipe.patches import read_plan
from asdm_cli.unet.flops import inputs, meta_unet
from asdm_cli.verbs.compare import random_config

PLANS: dict[str, dict[str, Any]] = {
    "deepcache 0": {"preset": "deepcache"},
    "encoder": {"preset": "encoder-propagation"},
    "base mask": {"preset": "base-mask"},
    "all transformers": {
        "rules": [{"nodes": "*.attn", "cache": "residual", "schedule": {"mode": "uniform", "interval": 2}}]
    },
}
ROUNDS = 20


def main(shape: str = "sd15", dtype: str = "bfloat16", rows: str = "2") -> None:
    print(f"{'plan':18} {'order':>5} {'features':>8} {'MB':>8} {'keep ms':>8} {'hand on ms':>10}")
    for name, plan in PLANS.items():
        features = _features(shape, plan, int(rows), DTYPES[dtype])
        for order in (0, 1, 2):
            histories = [FeatureHistory(Polynomial(order)) for _ in features]
            keep, hand_on = _seconds(histories, features)
            held = sum(each.nbytes for each in histories)
            print(
                f"{name:18} {order:5} {len(features):8} {held / 1e6:8.1f} {1e3 * keep:8.2f} {1e3 * hand_on:10.2f}",
                flush=True,
            )


def _features(shape: str, plan: dict[str, Any], rows: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Random ones in place of everything that the plan keeps."""
    config = random_config(shape, None)
    unet = meta_unet(config)
    cache = FeatureCache(unet, read_plan(plan))
    with torch.no_grad(), cache.generation(2):
        unet(**{**inputs(config, batch=rows), "timestep": 500})
        kept = [history.values for module in cache.thread.step.memory.values() for history in module.present]
    return [torch.randn(each[0].shape).to(dtype) for each in kept if each]


def _seconds(histories: list[FeatureHistory], features: list[torch.Tensor]) -> tuple[float, float]:
    """Medians: of keeping all features at a key step, and of handing all on at the call after it."""
    keeping, handing = [], []
    for call in range(0, 2 * ROUNDS, 2):
        start = time.perf_counter()
        for history, feature in zip(histories, features, strict=True):
            history.prepare(call, call, stores=True)
            history.store(feature)
        kept = time.perf_counter()
        for history in histories:
            history.prepare(call + 1, call + 1, stores=False)
            history.value()
        handing.append(time.perf_counter() - kept)
        keeping.append(kept - start)
    return median(keeping), median(handing)


if __name__ == "__main__":
    main(*sys.argv[1:])
