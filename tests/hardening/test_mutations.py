"""2,000 recipes gone wrong, through `asdm check`: a verdict on each, never a traceback."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path

from tests.hardening.mutations import BYTES, KINDS, ORIGINALS, TEXTS, VALUES, mutated
from tests.typed import asdm

FILES = 2000
LONGEST = 400
"""Of a line that tells a fault, beside the file's name."""
ACCEPTED = re.compile(r"(?P<file>.*?\.yaml): OK, a recipe for asdm [\w-]+")
REFUSED = re.compile(r"(?P<file>.*?\.yaml)(:[1-9]\d*:[1-9]\d*)?: (?P<fault>\S.*)")


def test_two_thousand_mutated_recipes(tmp_path: Path) -> None:
    kinds = {}
    for number in range(FILES):
        file = tmp_path / f"{number}.yaml"
        kinds[file], raw = mutated(number)
        file.write_bytes(raw)
    said = asdm("check", *kinds)
    assert said.code == 2
    accepted = [ACCEPTED.fullmatch(line) for line in said.out.splitlines()]
    assert all(accepted)
    right = {Path(each["file"]) for each in accepted if each}
    faults: dict[Path, list[str]] = defaultdict(list)
    for line in said.err.split("\n")[:-1]:
        fault = REFUSED.fullmatch(line)
        assert fault, f"not told by file and place: {line[:300]!r}"
        assert line.isprintable(), repr(line[:300])
        assert len(fault["fault"]) <= LONGEST, line[:300]
        faults[Path(fault["file"])].append(fault["fault"])
    assert right.isdisjoint(faults)
    assert right | faults.keys() == kinds.keys()
    assert len(kinds) == FILES
    assert len(faults) > 1000, "most are refused"
    assert len(right) > 200, "some change nothing that matters"


def test_there_is_enough_to_mutate_and_every_mutation_changes_files() -> None:
    assert len(ORIGINALS) >= 30
    assert len(KINDS) == len(set(KINDS)) == len(BYTES) + len(TEXTS) >= 60
    assert sum(map(len, VALUES.values())) >= 80
    texts = {original.text.encode() for original in ORIGINALS}
    unchanged = Counter(
        kind for number, kind in zip(range(500), KINDS * 10, strict=False) if mutated(number)[1] in texts
    )
    assert unchanged.total() < 10, unchanged
