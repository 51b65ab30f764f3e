"""What four experts add to a UNet call: Base with and without them, in turn, at 1, 2 and 8 rows.

    python scripts/experts_cost.py            # of the bundled model's size
    python scripts/experts_cost.py sd15 2     # of SD 1.5's, in bfloat16: minutes per row count on a CPU

Weights are random. By features, each way to convolve rows by kernels of their own is timed: `FASTEST` in
asdm_cli/experts/layer.py is what came of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from asdm_cli.experts import layer
from asdm_cli.experts.convert import expand
from asdm_cli.models.directory import find
from asdm_cli.models.load import random_unet
from asdm_cli.profiling.latency import quartiles, stopwatch, time_interleaved
from asdm_cli.unet.blocks import Spec, preset
from asdm_cli.unet.flops import inputs
from asdm_cli.unet.surgery import remove

ROUNDS = {"pocket": 20, "sd15": 3}
DTYPES = {"pocket": torch.float32, "sd15": torch.bfloat16}


def main(shape: str = "pocket", *rows: str) -> None:
    donor = find("pocket").config("unet") if shape == "pocket" else preset(shape)
    base = remove(donor, "base").config
    device, dtype = torch.device("cpu"), DTYPES[shape]
    configs = {"base": base} | {
        router: expand(base, Spec(4, router, "softmax"), None, donor).config for router in ("features", "time")
    }
    unets = {name: random_unet(config, device, dtype) for name, config in configs.items()}
    for wanted in map(int, rows or ("1", "2", "8")):
        arguments = inputs(base, wanted, device=device, dtype=dtype)
        calls = {name: _call(unets[name], arguments) for name in ("base", "time")}
        calls |= {f"features, {way}": _call(unets["features"], arguments, way) for way in layer.WAYS}
        times = time_interleaved(calls, warmups=1, rounds=ROUNDS[shape], seconds=stopwatch(device), doing="timed")
        for name, taken in times.items():
            ratio = quartiles([mine / plain for mine, plain in zip(taken, times["base"], strict=True)])
            told = f"{1e3 * quartiles(taken).value:,.1f} ms, {ratio.value:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"
            print(f"{shape}, {wanted} rows, {name}: {told} of base's", flush=True)


def _call(unet: UNet2DConditionModel, arguments: dict[str, Any], way: str = "") -> Callable[[], None]:
    @torch.inference_mode()
    def call() -> None:
        layer.FASTEST["cpu"] = way
        unet(**{**arguments, "timestep": 500})

    return call


if __name__ == "__main__":
    main(*sys.argv[1:])
