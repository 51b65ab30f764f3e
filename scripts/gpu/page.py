"""docs/results/gpu.md from the JSON files of one run or several."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PAGE = Path("docs/results/gpu.md")


def write(folders: Sequence[Path]) -> Path:
    """Folders of later runs take the place of earlier ones', part by part."""
    parts = {path.stem: json.loads(path.read_text()) for folder in folders for path in sorted(folder.glob("*.json"))}
    text = [
        "# On a GPU",
        "",
        "Random weights at real size; `make gpu` measures it, `python -m scripts.gpu --page` writes this page.",
    ]
    for name in ("tests", "sd15", "sizes", "compiled", "distill", "pocket"):
        if name in parts:
            text += ["", f"## {TITLES[name]}", "", _machine(parts[name]), "", *_part(name, parts[name])]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join(text) + "\n")
    return PAGE


TITLES = {
    "tests": "Tests",
    "sd15": "Stable Diffusion 1.5, not compiled",
    "sizes": "SDXL and Stable Diffusion 2.1, not compiled",
    "compiled": "Stable Diffusion 1.5, compiled",
    "distill": "Distillation at the size of Stable Diffusion 1.5",
    "pocket": "The bundled model",
}


def _machine(part: dict[str, Any]) -> str:
    card, outcome = part["machine"], part.get("outcome", {})
    words = [card["device"], f"driver {card.get('driver')}", *card.get("versions", ()), card.get("date", "")]
    ended = (
        "" if outcome.get("exit") == 0 else f"; the part ended with exit {outcome.get('exit')}, figures are what it had"
    )
    return ", ".join(filter(None, words)) + ended + "."


def _part(name: str, part: dict[str, Any]) -> list[str]:
    if name == "tests":
        told = part.get("tests", {})
        counts = ", ".join(f"{count} {word.lower()}" for word, count in told.get("counts", {}).items())
        return [counts or "none ran", *(f"- {failed}" for failed in told.get("failed", []))]
    if name == "distill":
        return list(_distill(part))
    if name == "pocket":
        return [f"- {stage}: {figures}" for stage, figures in part.get("figures", {}).items()]
    return list(_costs(part))


def _costs(part: dict[str, Any]) -> Iterable[str]:
    """Speed-ups are of generations; `MACs` is what multiply-accumulates allow, and the share is of the first by the
    second."""
    from scripts.gpu.ways import GROUPS

    ways = {(way.shape, way.name, way.compiled): way for groups in GROUPS.values() for group in groups for way in group}
    plain = {
        (row["way"]["shape"], row["images"], row["way"]["compiled"]): row
        for row in part.get("rows", [])
        if row["way"]["name"] == "plain" and "ms" in row
    }
    heads = (
        "model",
        "way",
        "images",
        "ms: full call",
        "reused",
        "50 steps, s",
        "speed-up",
        "MACs",
        "share",
        "MB",
        "engine, ms",
    )
    yield from _head(heads)
    for row in part.get("rows", []):
        way, first = row["way"], plain.get((row["way"]["shape"], row["images"], row["way"]["compiled"]))
        title = f"{way['name']}{', ' + way['compiled'] if way['compiled'] else ''}"
        if "ms" not in row or first is None:
            yield _line(way["shape"], title, row["images"], row.get("skipped", "nothing to hold it against"), *[""] * 7)
            continue
        own = ways[way["shape"], way["name"], way["compiled"]]
        base = ways[way["shape"], "plain", first["way"]["compiled"]]
        speed = first["generation_s"] / row["generation_s"]
        bound = base.generation_macs(part["tiny"]) / own.generation_macs(part["tiny"])
        reused = ", ".join(
            f"{ms:.2f}" for name, ms in row["ms"].items() if not name.startswith("first") and name != "full"
        )
        figures = (
            row["ms"]["full"],
            reused,
            row["generation_s"],
            speed,
            bound,
            speed / bound,
            row["peak_mb"],
            row["begin_ms"],
        )
        yield _line(way["shape"], title, row["images"], *figures)
    if whole := part.get("whole"):
        yield from ("", "Whole generations of 50 steps (`fewer steps`: 25), seconds: ")
        yield ", ".join(f"{name} {seconds:.3f}" for name, seconds in whole.items()) + "."


def _distill(part: dict[str, Any]) -> Iterable[str]:
    yield from _head(("batch", "what", "s a step", "images/s", "peak MB"))
    for key, found in part.items():
        if key.startswith("batch "):
            for name, figures in found["figures"].items():
                yield _line(key.partition(":")[0][6:], name, figures["s"], figures["images_per_s"], found["peak_mb"])
        elif key.startswith("distill alone"):
            yield _line(key.rpartition(" ")[2], "distill alone", found["s"], found["images_per_s"], found["peak_mb"])
    for key, found in part.items():
        if key.startswith("batch ") and {"floor", "distill", "plain"} <= set(found["figures"]):
            floor, ours, plain = (found["figures"][name]["s"] for name in ("floor", "distill", "plain"))
            yield from ("", f"distill over its floor {ours / floor:.3f}; plain loop over distill {plain / ours:.3f}.")
            phases = found["phases_s"]["distill"]
            yield (
                "Where a step's time goes: "
                + ", ".join(f"{name} {1e3 * each:.1f} ms" for name, each in phases.items())
                + "."
            )
    for key, fits in part.items():
        if key.startswith("fits: ") and not fits:
            yield from ("", f"{key.removeprefix('fits: ')} in turn: does not fit.")
    if largest := part.get("largest"):
        yield from ("", f"Base alone: {largest}.")


def _head(heads: Sequence[str]) -> list[str]:
    return [_line(*heads), _line(*["---"] * len(heads))]


def _line(*cells: Any) -> str:
    said = (f"{cell:.3g}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in cells)
    return f"| {' | '.join(said)} |"
