"""Made-up reports with every kind of part, and the pictures that they show."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw

from asdm_cli.report.document import Bars, Column, Curves, Grid, Interval, Point, Report, Scatter, Table, Timeline

NAMES = ["pocket", "base", "small", "tiny"]
BLOCKS = ["down.0", "down.1", "down.2", "down.3", "mid", "up.0", "up.1", "up.2", "up.3"]
COURSE = {"down.0.0.res": "ccccccccccc", "up.2.1.attn": "ciiicciiici", "mid": "cdddcddddcd"}
"""What happens to each node at the calls of a generation."""
PROMPTS = ["fox, twemoji style", "red apple, noto style", "<script>alert('prompt')</script> & \"quotes\"", "ghost"]


def noisy(points: int = 2000) -> list[tuple[float, float]]:
    """A loss that falls from 1 to 0.05, times noise that differs from point to point and is the same in every run."""
    return [
        (float(step), (0.05 + 0.95 * math.exp(-step / 300)) * (1 + 0.5 * math.sin(step * step * 0.7)))
        for step in range(points)
    ]


def training_report() -> Report:
    rate = [(float(step), 1e-4 * (1 - step / 2000)) for step in range(0, 2000, 10)]
    loss = {name: [(x, y * factor) for x, y in noisy()] for name, factor in (("base", 1.0), ("small", 3.0))}
    return Report(
        verb="distill",
        title="Distilling base, small",
        summary="",
        parts=[
            Curves("Loss: noise", "step", "noise loss", loss, log=True, note="Less is better."),
            Curves("Learning rate", "step", "learning rate", {"base": rate}),
        ],
    )


def draw_pictures(run: Path) -> Path:
    """A run directory with a picture per prompt and contestant, the last one 512 px wide."""
    pictures = run / "pictures"
    pictures.mkdir(parents=True)
    for row in range(len(PROMPTS)):
        for column, name in enumerate(NAMES):
            side = 512 if name == "tiny" else 64
            draw_blob(side, row, column).save(pictures / f"{name}-{row}.png")
    return run


def draw_blob(side: int, row: int, column: int) -> Image.Image:
    picture = Image.new("RGB", (side, side), "white")
    colours = ["#e66a2c", "#c22f3d", "#5a8fd8", "#8d6cc8"]
    inset = side * (0.12 + 0.05 * column)
    ImageDraw.Draw(picture).ellipse((inset, inset, side - inset, side - inset), fill=colours[row % 4])
    ImageDraw.Draw(picture).rectangle((side * 0.4, side * 0.35, side * 0.45, side * 0.5), fill="#222")
    ImageDraw.Draw(picture).rectangle((side * 0.6, side * 0.35, side * 0.65, side * 0.5), fill="#222")
    return picture


def bench_report() -> Report:
    columns = [
        Column("name", "contestant"),
        Column("params_m", "UNet\nparameters, M", "lower"),
        Column("macs_g", "UNet call\nGMACs", "lower", 3),
        Column("unet_ms", "UNet call, ms", "lower", 1),
        Column("speedup", "UNet\nspeed-up", "higher"),
        Column("image_ms", "image, ms", "lower", 0),
        Column("peak_mb", "peak\nmemory, MB", "lower", 0),
    ]
    figures = [(8.8, 0.22, 31.2, 1.0), (6.43, 0.151, 22.4, 1.39), (5.1, 0.139, 20.9, 1.49), (3.2, 0.12, 17.3, 1.8)]
    rows = [
        {
            "name": name,
            "params_m": params,
            "macs_g": macs,
            "unet_ms": Interval(ms, ms * 0.97, ms * 1.06, "quartiles"),
            "speedup": Interval(speedup, speedup * 0.98, speedup * 1.03, "95 % bootstrap"),
            "image_ms": Interval(ms * 52, ms * 51, ms * 55, "quartiles"),
            "peak_mb": int(400 - 40 * index) if name != "tiny" else None,
        }
        for index, (name, (params, macs, ms, speedup)) in enumerate(zip(NAMES, figures, strict=True))
    ]
    blocks = {
        name: [round((1 + (3 - abs(4 - index)) * 0.6 + 0.3 * index) / (1 + 0.4 * place), 3) for index in range(9)]
        for place, name in enumerate(NAMES)
    }
    blocks["small"][4] = blocks["tiny"][4] = 0.0
    return Report(
        verb="bench",
        title="What pruning the pocket model saves",
        summary="base is 1.39 × as fast as pocket with 73 % of its parameters.",
        parts=[
            Table("Cost", columns, rows, "Contestants take turns round by round.", "latency"),
            Bars("Multiply-adds of the UNet by block", "MMACs per call", BLOCKS, blocks, "Zero: removed."),
            Timeline("What each call computes", list(COURSE), list(COURSE.values()), "Key steps: 0, 4, 9."),
        ],
        cards={"latency": {"device": "cpu, 2 threads", "rounds": 15, "versions": ["torch 2.13.0", "diffusers 0.42.1"]}},
    )


def eval_report() -> Report:
    columns = [
        Column("name", "contestant"),
        Column("kid", "KID", "lower", 4),
        Column("clip_score", "CLIP score", "higher", 2),
        Column("psnr_db", "PSNR to\npocket, dB", "higher", 1),
    ]
    rows = [
        {
            "name": name,
            "kid": Interval(kid, kid - 0.006, kid + 0.007, "95 % bootstrap"),
            "clip_score": Interval(score, score - 0.4, score + 0.4, "95 % bootstrap"),
            "psnr_db": math.inf if name == "pocket" else 20.0 - score / 10,
        }
        for name, kid, score in zip(NAMES, [0.031, 0.052, 0.078, 0.131], [28.4, 27.1, 25.0, 21.7], strict=True)
    ]
    curves = [
        Point(ms, kid, f"{steps}", series, kid - 0.004, kid + 0.005)
        for series, scale in (("pocket", 1.0), ("base", 0.72))
        for steps, ms, kid in ((10, 640 * scale, 0.09 / scale), (25, 1600 * scale, 0.031 / scale))
    ]
    pictures: list[list[Path | None]] = [
        [Path("pictures") / f"{name}-{row}.png" for name in NAMES] for row in range(len(PROMPTS))
    ]
    pictures[1][2] = None
    return Report(
        verb="eval",
        title="What pruning does to the pictures",
        summary="128 captions, 25 steps.",
        parts=[
            Table("Quality", columns, rows, "KID: distance to the real pictures.", "quality"),
            Scatter("Steps", "image latency, ms", "KID (lower is better)", curves),
            Grid("The same prompts and seeds", NAMES, PROMPTS, pictures),
        ],
        cards={"quality": {"prompts": 128, "features": "efficientnet_lite0", "guidance": 3.0, "scale": None}},
    )
