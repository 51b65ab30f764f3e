"""What needs a GPU, within a budget of minutes, on a machine that may have no network. `make gpu` calls it.

    python -m scripts.gpu --minutes 9                       # the bundled model, tests, Stable Diffusion 1.5
    python -m scripts.gpu --minutes 9 --preset measure      # tests, real sizes, distillation
    python -m scripts.gpu --parts compiled=9 --out DIR      # any parts, each with its own minutes
    python -m scripts.gpu --minutes 2 --tiny                # the same ways through the code on a CPU, without training
    python -m scripts.gpu --page DIR ...                    # docs/results/gpu.md from what came back

Every part is a process of its own that is ended when its share is over; it writes DIR/PART.json after every figure.
The bundled model comes back in pieces:

    mkdir -p runs/pocket && cat DIR/pocket.tar.* | tar x -C runs/pocket
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from math import ceil
from pathlib import Path
from typing import Any

from scripts.gpu.page import write as write_page
from scripts.gpu.results import Results

MIB = 2**20
TRAVEL, FILES, FILE, PIECE = 64 * MIB, 8, 15 * MIB, 14 * MIB
"""What may be carried to such a machine, and what may come back: so many files, each so large."""
PRESETS = {
    "train": {"pocket": 7.0, "tests": 2.0, "sd15": 2.0},
    "measure": {"tests": 3.0, "sizes": 5.0, "distill": 2.0},
}
PARTS = ("pocket", "tests", "sd15", "sizes", "compiled", "distill")
REST = 1.0
"""Minutes, beside a preset's, for starting, packing and leaving."""
GRACE = 15.0
"""Seconds that a part has to save what it holds, within its share."""
POCKET, DATA, WHEELS = Path("runs/gpu-pocket"), Path("data/wide.tar.gz"), Path(".whl")
COMPILED = "tests/gpu/test_compile.py"
TESTS = [*sorted({*map(str, Path("tests/gpu").glob("test_*.py"))} - {COMPILED}), COMPILED]
TESTS += ["-vv", "-W", "default", "--tb=short", "-p", "no:cacheprovider", "--maxschedchunk", "1"]
"""What takes longest comes last; warnings of other versions fail nothing."""
TEST = re.compile(
    r"^(?:\[gw\d+\] \[ *\d+%\] )?(?:(PASSED|FAILED|SKIPPED|ERROR) )?(tests/\S+)(?: (PASSED|FAILED|SKIPPED|ERROR))?"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--preset", choices=PRESETS, default="train")
    parser.add_argument("--parts", nargs="+", metavar="PART=MINUTES", help="instead of a preset")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")))
    parser.add_argument("--tiny", action="store_true", help="tiny models, for a try on a CPU")
    parser.add_argument("--page", nargs="+", type=Path, metavar="DIR", help="only write docs/results/gpu.md")
    given = parser.parse_args()
    if given.page:
        print(write_page(given.page))
        return
    shares = chosen(given.parts) if given.parts else shares_of(given.preset, given.minutes)
    if given.tiny:
        shares.pop("pocket", None)
    check_sizes(shares)
    given.out.mkdir(parents=True, exist_ok=True)
    print("parts:", ", ".join(f"{name} {minutes:.1f} min" for name, minutes in shares.items()), flush=True)
    for name, minutes in shares.items():
        part(name, minutes, given.out, given.tiny)
    check_results(given.out)


def shares_of(preset: str, minutes: float) -> dict[str, float]:
    parts = PRESETS[preset]
    return {name: share * minutes / (sum(parts.values()) + REST) for name, share in parts.items()}


def chosen(words: list[str]) -> dict[str, float]:
    shares = {name: float(minutes) for name, _, minutes in (word.partition("=") for word in words)}
    if unknown := set(shares) - set(PARTS):
        sys.exit(f"gpu: {', '.join(sorted(unknown))}: no such part; use {', '.join(PARTS)}")
    return shares


def check_sizes(shares: dict[str, float]) -> None:
    """Before anything starts: the data is there, what travels and what will come back is small enough."""
    if "pocket" in shares and not DATA.exists():
        sys.exit(f"gpu: {DATA} is missing, which the part `pocket` learns from: `make data` makes it, with a network")
    listed = subprocess.run("git ls-files", shell=True, capture_output=True, text=True, check=False)
    tree = map(Path, listed.stdout.splitlines()) if listed.returncode == 0 else Path().rglob("*")  # a copy without git
    travels = {path for path in tree if path.is_file() and path.parts[0] not in (".git", ".venv", "runs")}
    travels |= {DATA} if DATA.exists() else set()
    travels |= set(WHEELS.glob("*.whl"))
    size = sum(path.stat().st_size for path in travels)
    if size > TRAVEL:
        largest = sorted(travels, key=lambda path: -path.stat().st_size)[:5]
        sys.exit(
            f"gpu: {size / MIB:.0f} MiB would travel, {TRAVEL // MIB} may; largest: {', '.join(map(str, largest))}"
        )
    weights = sum(path.stat().st_size for path in Path("asdm_cli/pocket/weights").rglob("*.safetensors"))
    pieces = ceil(1.5 * weights / PIECE) if "pocket" in shares else 0
    if (files := pieces + len(shares) + 1) > FILES:
        sys.exit(f"gpu: {files} files would come back, {FILES} may; choose fewer parts")


def check_results(out: Path) -> None:
    found = sorted(out.iterdir())
    large = [path.name for path in found if path.stat().st_size > FILE]
    print(f"{out}: {', '.join(path.name for path in found)}")
    if large or len(found) > FILES:
        print(f"gpu: more than may come back: {len(found)} files of {FILES}; over {FILE // MIB} MiB: {large}")


def part(name: str, minutes: float, out: Path, tiny: bool) -> None:
    start, results = time.monotonic(), Results(out / f"{name}.json")
    command = {
        "pocket": [
            "-m",
            "pocket",
            "chain",
            "--minutes",
            f"{max(0.1, minutes - 2 * GRACE / 60):.2f}",
            "--folder",
            POCKET,
        ],
        "tests": ["-m", "pytest", *TESTS, "-n", "2" if tiny else "8"],
        "distill": ["-m", "scripts.gpu.distill"],
    }.get(name, ["-m", "scripts.gpu.costs", name])
    if name not in ("pocket", "tests"):
        measured = max(30 * minutes, 60 * minutes - 2 * GRACE)  # it starts before its clock does
        command = [*command, "--out", results.path, "--seconds", f"{measured:.0f}", *["--tiny"] * tiny]
    with tempfile.TemporaryFile("w+") as log:
        code = ended(command, 60 * minutes, log)
        log.seek(0)
        text = log.read()
    if name == "tests":
        results.put("tests", tests(text))
    if name == "pocket":
        results.put("figures", pocket(out, 60 * minutes - (time.monotonic() - start), code))
    results = Results(out / f"{name}.json")
    results.put("outcome", {"exit": code, "seconds": round(time.monotonic() - start, 1), "minutes": round(minutes, 2)})
    with (out / "log.txt").open("a") as whole:
        whole.write(f"=== {name}\n{text[-2 * MIB :]}\n")
    print(f"--- {name}: exit {code}, {time.monotonic() - start:.0f} s\n{text[-1500:]}", flush=True)


def ended(command: list[Any], seconds: float, log: Any) -> int:
    """The exit status of a Python command that is told to end GRACE before its time is over, and killed then."""
    grace = min(GRACE, seconds / 4)
    words = [sys.executable, *map(str, command)]
    process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    for number, left in ((signal.SIGTERM, seconds - grace), (signal.SIGKILL, grace)):
        try:
            return process.wait(left)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, number)
    return process.wait()


def tests(text: str) -> dict[str, Any]:
    """What pytest said of each test; those without a word had no time."""
    said = {}
    for line in text.splitlines():
        if (found := TEST.match(line)) and (word := found[1] or found[3]):
            said[found[2]] = word
    failed = [name for name, word in said.items() if word in ("FAILED", "ERROR")]
    return {"counts": dict(Counter(said.values())), "failed": failed, "last": text.splitlines()[-1:]}


def pocket(out: Path, seconds: float, code: int) -> dict[str, Any]:
    """Pack what was learnt; of a chain that was ended, what its newest checkpoint of the UNet has."""
    if code and (POCKET / "unet" / "latest.pt").exists():
        with tempfile.TemporaryFile("w+") as log:
            ended(["-m", "pocket", "parts", "unet", "--folder", POCKET], max(60.0, seconds), log)
    kept = [*POCKET.rglob("parts/**/*"), *POCKET.glob("*.json"), *POCKET.glob("*/log.jsonl")]
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as tar:
            for path in sorted(path for path in kept if path.is_file()):
                tar.add(path, path.relative_to(POCKET))
        whole.seek(0)
        for number, piece in enumerate(iter(lambda: whole.read(PIECE), b"")):
            (out / f"pocket.tar.{number:02}").write_bytes(piece)
    return {path.stem: json.loads(path.read_text()) for path in sorted(POCKET.glob("*.json"))}


if __name__ == "__main__":
    main()
