"""Hand-made reports of records: one comparison with everything, a pruning, a training, and pictures for them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from asdm_cli.records import Images, Record, Report, Timeline, under

HOSTILE = "\"><img src=x onerror=alert(1)></script><script>alert('2')</script>&amp;{{ 7 * 7 }} $x^2$"
PROMPTS = ["fox, twemoji style", "red apple, noto style", "<script>alert('prompt')</script> & \"quotes\"", "ghost"]
NAMES = ["pocket", "base", "small", "tiny"]
BLOCKS = ["down.0", "down.1", "mid", "up.0", "up.1"]


def interval(setup: str, metric: str, value: float, half: float, what: str = "95 % bootstrap", **more: Any) -> Record:
    return Record(setup, metric, value, value - half, value + half, what, **more)


def compared() -> Report:
    """Four models, the first at fewer steps, DeepCache and three plans; costs, quality, parts, images, a timeline."""
    records: list[Record] = []
    costs = [(8.77, 0.220, 31.2, 1.0), (5.91, 0.151, 22.4, 1.39), (5.1, 0.139, 20.9, 1.49), (3.2, 0.12, 17.3, 1.8)]
    for place, (name, (params, macs, ms, speed)) in enumerate(zip(NAMES, costs, strict=True)):
        records += [Record(name, "params_m", params), Record(name, "macs_g", macs), Record(name, "steps", 25)]
        records += [
            interval(name, "unet_ms", ms, 0.03 * ms, "quartiles"),
            interval(name, "image_ms", 52 * ms, 40, "quartiles"),
        ]
        records += [Record(name, "peak_memory_mb", 400 - 40 * place)] if name != "tiny" else []
        records += [interval(name, "image_speedup", speed, 0.02, against="pocket")] if place else []
        for index, block in enumerate(BLOCKS):
            values = {
                "params_m": (1 + index) / (1 + place),
                "macs_g": 0.01 * (6 - index),
                "plain_macs_g": 0.009 * (6 - index),
            }
            records += [Record(name, key, value, of=f"block/{block}") for key, value in values.items()]
        records += [Record(name, "images_per_s", batch / ms, of=f"batch/{batch}") for batch in (1, 4)]
    records = under("cost", records)
    quality: list[Record] = []
    for name, kid, clip in zip(NAMES, [0.031, 0.033, 0.078, 0.131], [28.4, 27.1, 25.0, 21.7], strict=True):
        quality += [interval(name, "kid", kid, 0.006), interval(name, "clip_score", clip, 0.4)]
    series = {"fewer steps": (1.9, 3.1), "DeepCache": (1.6, 2.2), "plans": (1.7, 2.5, 3.3)}
    setups: dict[str, Any] = {name: {"model": name, "steps": 25} for name in NAMES}
    for name, speeds in series.items():
        for place, speed in enumerate(speeds):
            setups[f"{name} {place}"] = {"model": "pocket", "steps": 25, "series": name}
            lost = {"fewer steps": 14, "DeepCache": 11, "plans": 7}[name] * speed
            records += [interval(f"{name} {place}", "image_speedup", speed, 0.03, against="pocket", protocol="cost")]
            quality += [interval(f"{name} {place}", "psnr_db", 58 - lost, 0.8, against="pocket")]
            quality += [interval(f"{name} {place}", "kid", 0.03 + 0.0004 * lost, 0.006)]
    setups["real"] = {"reference": True}
    quality += [interval("real", "kid", 0.001, 0.004)]
    quality += [
        interval(name, "label_accuracy", 0.8 - 0.1 * place, 0.06, of=f"split/{part}")
        for place, name in enumerate(NAMES[:2])
        for part in ("held-out", "trained")
    ]
    return Report(
        "compare",
        setups,
        records + under("quality", quality),
        {
            "cost": {"device": "cpu, 2 threads", "rounds": 15, "versions": ["torch 2.13.0", "diffusers 0.42.1"]},
            "quality": {"prompts": 128, "features": "efficientnet_lite0", "scale": None},
        },
        Images(PROMPTS, {"real": "images/real", **{name: f"images/{name}" for name in NAMES}}),
        [
            Timeline(
                "What each UNet call computes",
                {"down.0.0.res": "ccccccccccc", "up.2.1.attn": "ciiicciiici", "mid": "cdddcddddcd"},
                {"c": "computed", "i": "reused", "d": "skipped"},
                "Key steps: 0, 4, 9.",
            )
        ],
        {
            "title": "Everything",
            "written model": "plans 0",
            "rules": [{"nodes": "up.3", "key steps": 9, "order": 1}],
            "weight map": {"up_blocks.0.resnets.1": "up_blocks.0.resnets.2"},
        },
        ["Fidelity is to pocket's pictures of the same prompts and seeds."],
    )


def pruned() -> Report:
    before, after = ("pocket", (8.77, 0.220)), ("base", (5.91, 0.151))
    records = [
        Record(name, key, value)
        for name, values in (before, after)
        for key, value in zip(("params_m", "macs_g"), values, strict=True)
    ]
    records += [
        Record(name, "params_m", 1.5 - share, of=f"block/{block}")
        for name, share in (("pocket", 0), ("base", 0.5))
        for block in BLOCKS
    ]
    records += [Record("pocket", "params_m", 0.4, of="removed/down.0.1")]
    return Report(
        "prune",
        {"pocket": {"model": "pocket"}, "base": {"model": "runs/base"}},
        records,
        facts={"removed": ["down.0.1", "mid"]},
    )


def trained() -> Report:
    """Losses with noise that differs from point to point and is the same in every run."""
    records = [
        Record(
            name,
            "loss",
            factor * (0.05 + 0.95 * math.exp(-step / 300)) * (1 + 0.5 * math.sin(step * step * 0.7)),
            of=f"loss/{term}",
            at=step,
        )
        for name, factor in (("base", 1.0), ("small", 3.0))
        for term in ("task", "output")
        for step in range(0, 2000, 2)
    ]
    records += [Record("base", "lr", 1e-4 * (1 - step / 2000), at=step) for step in range(0, 2000, 10)]
    records += [Record(name, "loss", value, of="loss/task") for name, value in (("base", 0.0512), ("small", 0.1533))]
    return Report("distill", {"base": {"model": "base"}, "small": {"model": "small"}}, records)


def odd() -> Report:
    """Names, figures and texts as nobody expects them."""
    setups = {HOSTILE: {"series": HOSTILE}, "nothing": {"series": HOSTILE}, "_": {}, "": {}}
    values = (math.nan, math.inf, -math.inf, 0.0, -1e-9, 1e300)
    records = [
        Record(name, key, value)
        for name, value in zip([*setups, "unknown", "x"], values, strict=True)
        for key in ("kid", "params_m", HOSTILE)
    ]
    records += [Record(HOSTILE, "loss", value, of=f"loss/{HOSTILE}", at=place) for place, value in enumerate(values)]
    records += [Record(HOSTILE, "params_m", value, of=f"{HOSTILE}/{place}") for place, value in enumerate(values)]
    facts = {
        HOSTILE: HOSTILE,
        "list": [HOSTILE, 1],
        "rows": [{HOSTILE: HOSTILE}, {"other": None}],
        "none": {},
        "empty": [],
    }
    timelines = [
        Timeline(HOSTILE, {HOSTILE: "ab"}, {"a": HOSTILE, "b": "b"}),
        Timeline("", {}, {}),
        Timeline("", {"a": ""}, {"x": "x"}),
    ]
    return Report(
        HOSTILE,
        setups,
        records,
        {HOSTILE: {HOSTILE: HOSTILE, "list": [HOSTILE]}},
        Images([HOSTILE], {HOSTILE: "images/pocket"}),
        timelines,
        facts,
        [HOSTILE],
    )


def draw(run: Path) -> Path:
    """A run directory with an image per prompt and set-up, the last one 512 px wide; one image is missing."""
    for column, name in enumerate([*NAMES, "real"]):
        (run / "images" / name).mkdir(parents=True)
        for row in range(len(PROMPTS)):
            side = 512 if name == "tiny" else 64
            image = Image.new("RGB", (side, side), "white")
            inset = side * (0.12 + 0.05 * column)
            colour = ["#e66a2c", "#c22f3d", "#5a8fd8", "#8d6cc8"][row % 4]
            ImageDraw.Draw(image).ellipse((inset, inset, side - inset, side - inset), fill=colour)
            if (row, name) != (2, "small"):
                image.save(run / "images" / name / f"{row:06d}.png")
    return run
