"""The model card beside the weights: data, licences, training, and the figures against their bars."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from transformers import CLIPModel, CLIPTokenizer

from asdm_cli.compare.run import QUALITY
from asdm_cli.compare.setup import REAL, VAE
from asdm_cli.records import Record, Report
from asdm_cli.report.run_directory import read as read_report
from asdm_cli.sampling.image_set import ImageSet, to_image
from asdm_cli.sampling.image_set import read as read_image
from pocket import worth
from pocket.art import LABELS, SETS
from pocket.autoencoder import reconstruction_psnr
from pocket.contrastive import Contrasting
from pocket.drawings import Pairs, read
from pocket.probe import accuracies
from pocket.stages import ORDER, RECORDS, SHARDS, WEIGHTS

HELD, KNOWN = "held-out", "trained"
SHOWN = 64
TILE, GAP, LINE, COLUMNS = 96, 4, 26, 8
CARD = """\
---
license: apache-2.0
---
# pocket

Stable Diffusion's architecture in small, so that compression and acceleration can be tried in minutes on a CPU:
{shape}.
v-prediction with zero terminal SNR. Loads in plain diffusers. It draws 128 things in six styles, "fox, twemoji style".

`clip/` scores pictures: another CLIP than the one whose text half conditions the UNet. `probe/` names a picture's label
and style: linear probes on EfficientNet-Lite0, fitted on the training drawings.

## Figures

{pictures} pictures, {per_prompt} of each of 128 held-out and 128 trained captions; 25 steps DDIM, guidance {guidance}.
In brackets: 95 % intervals, Wilson's for accuracies.

| | bar | drawn | real, through the VAE | real |
|---|---|---|---|---|
{figures}

| judges, on held-out drawings | bar | |
|---|---|---|
{judges}

To the nearest training drawing (EfficientNet-Lite0, 1 is the typical distance of two drawings), median: drawn held-out
captions {near_drawn:.2f}, drawn trained captions {near_known:.2f}, real held-out drawings {near_real:.2f}. Copies would
be near 0.

![samples](samples.png)

`samples.png`: drawn (left of each pair) and real; rows 1-4 trained captions, 5-8 held-out ones, seed 0, none left out.

## What the blocks are worth

The relative square error of the UNet's output when all that a block hands on is zero, and the label accuracy of the
first 128 of the captions drawn so, not distilled.

| zeroed | t = 900 | t = 500 | t = 100 | label accuracy |
|---|---|---|---|---|
{worth}

## Training

Weights are exponential averages, stored as float16. {hardware}

| stage | steps | batch | figures at the end, on held-out drawings |
|---|---|---|---|
{stages}

{remarks}

`python -m pocket train unet --go-on` goes on from these weights, `python -m pocket export generator` replaces them and
`make pocket-figures` renews this page. `curves.png`: training losses.

## Data

{known} drawings at 64 x 64 on white; the 128 held out are a style of each label that was not learnt. Where one of
fluent and flat is held out, its twin (the same drawing) is learnt from nowhere. All of them ship in `data/`.

| set | style word | licence | source |
|---|---|---|---|
{sets}

Labels: {labels}.

## Limits

It knows 128 emoji and nothing else. It is a test object, not a picture generator.
"""


def write(run: Path, hardware: str, remarks: str) -> Path:
    """README.md, samples.png and curves.png beside the shipped weights, from the run of eval-pocket-figures.yaml."""
    report, shard = read_report(run), read(SHARDS / "evaluation.tar.gz")
    assert report.images, "an evaluation has images"
    name = next(iter(report.setups))
    pictures = ImageSet(run / report.images.folders[name], report.protocols[QUALITY]["pictures"])
    guidance = float(report.setups[name]["guidance"])
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS, use_safetensors=True)
    _samples(pictures, shard)
    curves(WEIGHTS / "curves.png")
    near = _nearest(pictures, shard)
    page = WEIGHTS / "README.md"
    stages = {stage: json.loads(file.read_text()) for stage in ORDER if (file := RECORDS / f"{stage}.json").exists()}
    page.write_text(
        CARD.format(
            shape=_shape(pipe),
            pictures=pictures.count,
            per_prompt=pictures.count // len(shard),
            guidance=guidance,
            figures=_figures(report, name),
            judges=_judges(pipe),
            near_drawn=near[HELD],
            near_known=near[KNOWN],
            near_real=near[REAL],
            worth=_worth(pipe, shard, guidance),
            hardware=hardware,
            remarks=remarks,
            stages="\n".join(_stage_row(stage, about) for stage, about in stages.items() if "steps" in about),
            known=len(read(SHARDS / "train.tar.gz")),
            sets="\n".join(f"| {s.package} {s.version} | {s.style} | {s.licence} | {s.source} |" for s in SETS),
            labels=f"{LABELS.package} {LABELS.version}, {LABELS.licence}, {LABELS.source}",
        )
    )
    return page


def _shape(pipe: StableDiffusionPipeline) -> str:
    unet, vae = pipe.unet.config, pipe.vae.config
    side, widths = unet["sample_size"], ", ".join(map(str, unet["block_out_channels"]))
    size = sum(weight.numel() for weight in pipe.unet.parameters()) / 1e6
    return (
        f"{vae['sample_size']} x {vae['sample_size']} pixels, latents {unet['in_channels']} x {side} x {side}, a UNet "
        f"of {size:.2f} M parameters with levels of {widths} channels, two layers each, and a mid block"
    )


def _figures(report: Report, drawn: str) -> str:
    of = {(each.setup, each.metric, each.of.removeprefix("split/")): each for each in report.records}
    bars = {
        ("label accuracy, held-out captions", "label_accuracy", HELD): ".65",
        ("label accuracy, trained captions", "label_accuracy", KNOWN): ".85",
        ("the same, top 5, held-out captions", "label_accuracy_top_5", HELD): "",
        ("the same, top 5, trained captions", "label_accuracy_top_5", KNOWN): "",
        ("style accuracy, held-out captions", "style_accuracy", HELD): "",
        ("style accuracy, trained captions", "style_accuracy", KNOWN): "",
        ("CLIP score", "clip_score", ""): "not above real",
        ("own caption found among all", "recall_at_1", ""): "not above real",
        ("KID (EfficientNet-Lite0)", "kid", ""): f"{3 * of[VAE, 'kid', ''].value + 0.02:.3f}",
    }
    rows = []
    for (title, key, split), bar in bars.items():
        cells = [_cell(of.get((name, key, split))) for name in (drawn, VAE, REAL)]
        rows.append(f"| {title} | {bar} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _judges(pipe: StableDiffusionPipeline) -> str:
    held = read(SHARDS / "held-out.tar.gz")
    clip = CLIPModel.from_pretrained(WEIGHTS / "clip", dtype=torch.float32, use_safetensors=True).eval()
    words = CLIPTokenizer.from_pretrained(WEIGHTS / "clip")
    found = Contrasting(clip, held, held, words, torch.device("cpu")).figures()
    seen = accuracies(WEIGHTS / "probe", held, pipe.vae)
    rows = [
        ("VAE, PSNR", "30 dB", f"{reconstruction_psnr(pipe.vae, held.images):.1f} dB"),
        ("CLIP (score), R@1 among 128 captions", ".60", f"{found['recall_at_1']:.3f}"),
        ("probe, label, real drawings", ".88", f"{seen['label_accuracy']:.3f}"),
        ("probe, label, through the VAE", ".84", f"{seen['label_accuracy_through_vae']:.3f}"),
        ("probe, style, real drawings", "", f"{seen['style_accuracy']:.3f}"),
        ("probe, style, through the VAE", "", f"{seen['style_accuracy_through_vae']:.3f}"),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _worth(pipe: StableDiffusionPipeline, shard: Pairs, guidance: float) -> str:
    errors = worth.output_errors(pipe, shard)
    accuracies = worth.label_accuracies(pipe, shard, guidance)
    rows = [f"| nothing | 0 | 0 | 0 | {accuracies['whole']:.2f} |"]
    for block, each in errors.items():
        rows.append(f"| {block} | {' | '.join(f'{error:.2g}' for error in each)} | {accuracies[block]:.2f} |")
    return "\n".join(rows)


def _nearest(pictures: ImageSet, shard: Pairs) -> dict[str, float]:
    """Median distance to the nearest training drawing: of the pictures of each part, and of real held-out drawings."""
    drawings = read(SHARDS / "train.tar.gz").images
    drawn = torch.cat(list(pictures.first(len(shard)).batches()))
    parts = {part: [i for i, about in enumerate(shard.about) if about["split"] == part] for part in (HELD, KNOWN)}
    sets = {part: drawn[rows] for part, rows in parts.items()} | {REAL: shard.images[parts[HELD]]}
    return {name: median(worth.nearest(images, drawings).tolist()) for name, images in sets.items()}


def _samples(pictures: ImageSet, shard: Pairs) -> None:
    """samples.png: a grid of cells, drawn left, real right, the caption under them."""
    parts = {part: [i for i, about in enumerate(shard.about) if about["split"] == part] for part in (KNOWN, HELD)}
    rows = [row for part in parts.values() for row in part[: SHOWN // 2]]
    width, height = 2 * TILE + 2 * GAP, TILE + LINE
    canvas = Image.new("RGB", (COLUMNS * width, -(-len(rows) // COLUMNS) * height), "#eceff1")
    pen = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        x, y = (number % COLUMNS) * width + GAP // 2, (number // COLUMNS) * height + GAP // 2
        for left, image in ((x, read_image(pictures.path(row))), (x + TILE + GAP // 2, shard.images[row])):
            canvas.paste(to_image(image).resize((TILE, TILE), Image.Resampling.LANCZOS), (left, y))
        pen.text((x + 2, y + TILE + 6), shard.captions[row][:34], fill="#263238")
    canvas.save(WEIGHTS / "samples.png")


def curves(target: Path) -> None:
    """The losses of every stage over its steps, one panel each, as a PNG."""
    from matplotlib.figure import Figure

    logs = {name: file for name in ORDER if (file := RECORDS / f"{name}.jsonl").exists()}
    figure = Figure(figsize=(4 * len(logs), 3), layout="constrained")
    for panel, (name, log) in zip(figure.subplots(1, len(logs), squeeze=False)[0], logs.items(), strict=True):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        for key in rows[0].keys() - {"step", "lr", "samples_per_s", "gradient_norm"}:
            panel.plot([row["step"] for row in rows], [row[key] for row in rows], label=key, linewidth=1)
        panel.set(title=name, xlabel="step", yscale="log")
        panel.legend(frameon=False)
    figure.savefig(target, dpi=110)


def _stage_row(name: str, stage: dict) -> str:
    figures = ", ".join(f"{key} {value:.3f}" for key, value in stage["figures"].items())
    return f"| {name} | {stage['steps']} | {stage['batch']} | {figures} |"


def _cell(record: Record | None) -> str:
    if record is None:
        return ""
    digits = 3 if record.value < 10 else 1
    if record.low is None or record.high is None:
        return f"{record.value:.{digits}f}"
    return f"{record.value:.{digits}f} ({record.low:.{digits}f}-{record.high:.{digits}f})"
