"""The model card beside the weights: data, licences, training, and the figures against their bars."""

from __future__ import annotations

import json
from pathlib import Path

from asdm_cli.errors import RunError
from asdm_cli.pocket.art import LABELS, SETS
from asdm_cli.pocket.stages import RECORDS, WEIGHTS
from asdm_cli.report.document import Interval, Report, Table

STAGES = ("vae", "clip", "unet", "decoder")
BARS = """\
| bar | wanted | reached |
|---|---|---|
| VAE, PSNR on validation | 28 dB | {psnr_db:.1f} dB |
| CLIP, image to text over 500 validation pairs | R@1 0.30, R@5 0.65 | R@1 {recall_1:.3f}, R@5 {recall_5:.3f} |
| drawn pictures, R@1 as a share of the real pictures' | 0.60 | {share:.2f} ({drawn:.3f} of {real:.3f}) |
| drawn pictures, KID (EfficientNet-Lite0) | {kid_bar:.3f} (3 x VAE reconstruction + 0.02) | {kid:.3f} |
"""
CARD = """\
---
license: apache-2.0
---
# pocket

Stable Diffusion's architecture in small, so that compression and acceleration can be tried in minutes on a CPU.
64 x 64 pixels, latents 8 x 16 x 16, UNet of four levels (32, 64, 128, 128) with two layers each, a mid block and
cross-attention where SD 1.x has it; v-prediction with zero terminal SNR. Loads in plain diffusers.
`clip/` holds the contrastive model whose text half conditions the UNet, for CLIP scores.

## Figures

{bars}
Drawn: 25 steps DDIM, guidance {guidance}, the best of those tried, {pictures} validation captions.
![samples](samples.png)

`samples.png`: drawn (left of each pair) and real, for the first 64 validation captions; none was trained on.
`curves.png`: training losses.

## Training

Weights are the exponential moving average, stored as float16.

| stage | steps | batch | figures at the end |
|---|---|---|---|
{stages}

Hardware: {hardware}

The training is not at its end: the loss still falls. `python -m asdm_cli.pocket train unet --go-on` goes on from
these weights, `python -m asdm_cli.pocket export` replaces them and `make pocket-figures` renews this page.

## Data

{pairs} captioned pictures ("fox, twemoji style"), rendered at 64 x 64 on white. Flags, symbols and skin-tone
variants were left out. Held out: {held} pictures, of labels known from other styles and of labels never seen.

| set | style word | licence | source |
|---|---|---|---|
{sets}

Labels: {labels}.

## Limits

It knows emoji and nothing else. It is a test object, not a picture generator: small text, hands, faces of people and
labels outside the training captions come out as coloured shapes.
"""


def card(evaluation: Report, hardware: str, pairs: int, held: int) -> str:
    """The card's text; `evaluation` drew contestants named by guidance."""
    stages = {name: json.loads(file.read_text()) for name, file in _records(".json").items()}
    rows = {str(row["name"]): row for row in _figures(evaluation).rows}
    drawn = [row for name, row in rows.items() if name.startswith("guidance")]
    best = max(drawn, key=lambda row: _number(row["recall_at_1"]))
    real, through_vae = rows["real pictures"], rows["real, VAE reconstruction"]
    clip, vae = stages["clip"]["figures"], (stages.get("decoder") or stages["vae"])["figures"]
    bars = BARS.format(
        psnr_db=vae["psnr_db"],
        recall_1=clip["recall_at_1"],
        recall_5=clip["recall_at_5"],
        drawn=_number(best["recall_at_1"]),
        real=_number(real["recall_at_1"]),
        share=_number(best["recall_at_1"]) / _number(real["recall_at_1"]),
        kid=_number(best["kid"]),
        kid_bar=3 * _number(through_vae["kid"]) + 0.02,
    )
    return CARD.format(
        bars=bars,
        guidance=str(best["name"]).removeprefix("guidance "),
        pictures=evaluation.cards["figures"]["pictures"],
        stages="\n".join(_stage_row(name, stage) for name, stage in stages.items()),
        hardware=hardware,
        pairs=pairs,
        held=held,
        sets="\n".join(f"| {s.package} {s.version} | {s.style} | {s.licence} | {s.source} |" for s in SETS),
        labels=f"{LABELS.package} {LABELS.version}, {LABELS.licence}, {LABELS.source}",
    )


def curves(target: Path) -> None:
    """The losses of every stage over its steps, one panel each, as a PNG."""
    from matplotlib.figure import Figure

    logs = _records(".jsonl")
    figure = Figure(figsize=(4 * len(logs), 3), layout="constrained")
    for panel, (name, log) in zip(figure.subplots(1, len(logs), squeeze=False)[0], logs.items(), strict=True):
        rows = [row for row in map(json.loads, log.read_text().splitlines()) if "lr" in row]
        for key in rows[0].keys() - {"step", "lr", "images_per_s"}:
            panel.plot([row["step"] for row in rows], [row[key] for row in rows], label=key, linewidth=1)
        panel.set(title=name, xlabel="step", yscale="log")
        panel.legend(frameon=False)
    figure.savefig(target, dpi=110)


def write(evaluation: Report, hardware: str, pairs: int, held: int) -> Path:
    """README.md and curves.png beside the shipped weights."""
    curves(WEIGHTS / "curves.png")
    page = WEIGHTS / "README.md"
    page.write_text(card(evaluation, hardware, pairs, held))
    return page


def _records(ending: str) -> dict[str, Path]:
    """Stage -> its file beside the weights."""
    files = {name: RECORDS / f"{name}{ending}" for name in STAGES}
    found = {name: file for name, file in files.items() if file.exists()}
    if not {"vae", "clip", "unet"} <= found.keys():
        raise RunError(f"{RECORDS}: lacks the records of a stage; export a whole training first")
    return found


def _stage_row(name: str, stage: dict) -> str:
    figures = ", ".join(f"{key} {value:.3f}" for key, value in stage["figures"].items())
    return f"| {name} | {stage['steps']} | {stage['batch']} | {figures} |"


def _figures(evaluation: Report) -> Table:
    return next(part for part in evaluation.parts if isinstance(part, Table))


def _number(cell: object) -> float:
    assert isinstance(cell, Interval | float | int), cell
    return cell.value if isinstance(cell, Interval) else float(cell)
