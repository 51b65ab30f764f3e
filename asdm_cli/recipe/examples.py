"""A recipe of every verb, as small as it is useful: what the reference shows."""

from __future__ import annotations

EXAMPLES = {
    "prune": """\
verb: prune
model: pocket
remove: [mid, down.0.1, up.3.1]
out: runs/pruned
""",
    "distill": """\
verb: distill
teacher: pocket
students:
  - {name: base, model: runs/prune-pocket-base}
  - {name: sides, model: runs/assemble-pocket-1122, freeze: from original}
data: {train: pocket, held_out: pocket-held-out}
losses:
  - {kind: task, snr_gamma: 5.0}
  - {kind: output, weight: [[0, 0.5], [1000, 1.0]]}
  - {kind: features, at: ["up.?"], normalise: teacher}
steps: 2000
optimizer: {lr: 3.0e-4, schedule: cosine, warmup: 50}
out: runs/distilled
""",
    "assemble": """\
verb: assemble
donors: {original: pocket, base: runs/prune-pocket-base}
levels: [base, base, original, original]
mid: original
out: runs/assembled
""",
    "condconv-expand": """\
verb: condconv-expand
model: runs/distilled
expand: {experts: 4, donor: pocket, router: time}
out: runs/expanded
""",
    "inherit": """\
verb: inherit
model: pocket
plan:
  rules:
    - {nodes: up.3, schedule: {mode: early, interval: 3}, order: 1}
sweep:
  - {name: deepcache, plan: {preset: deepcache, interval: 3}}
sampler: ddim
out: runs/inherited
""",
    "switch": """\
verb: switch
unets:
  original: {model: pocket}
  base: {model: runs/distilled}
parts: [{unet: base, until: 700}, {unet: original}]
out: runs/switched
""",
    "bench": """\
verb: bench
models:
  - {name: original, random: sd15}
  - {name: base, random: sd15, remove: base}
images: false
out: runs/cost
""",
    "eval": """\
verb: eval
models:
  - {name: original, model: pocket}
  - {name: base, model: runs/distilled, steps: 20}
limit: 128
metrics: [kid, clip_score, psnr]
out: runs/worth
""",
    "run": """\
verb: run
inputs: {model: pocket}
stages:
  base: {verb: prune, model: $model, remove: base}
  taught:
    verb: distill
    teacher: $model
    students: [{name: base, model: $base}]
    steps: 400
  worth:
    verb: eval
    models: [{name: original, model: $model}, {name: base, model: $taught}]
out: runs/path
""",
}
"""Verb -> recipe."""
