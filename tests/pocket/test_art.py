"""Packages -> drawings, on a small made-up package store."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from pocket import art

EMOJI = [
    {"label": "fox", "hexcode": "1F98A", "group": 3},
    {"label": "woman: red hair", "hexcode": "1F469-200D-1F9B0", "group": 1},
    {"label": "flag: Chad", "hexcode": "1F1F9-1F1E9", "group": 9},
]
ICONS = {"fox-face": "<circle/>", "woman-red-hair": "<path/>", "flag-chad": "<rect/>", "fox-dark-skin-tone": "<g/>"}


def archive(path: Path, files: dict[str, object]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def packages(tmp_path):
    archive(tmp_path / art.LABELS.archive, {"package/en/data.json": EMOJI})
    icons = {"width": 32, "height": 32, "icons": {slug: {"body": body} for slug, body in ICONS.items()}}
    for art_set in art.SETS:
        files = {"package/icons.json": icons}
        if art_set.style == "noto":
            files["package/chars.json"] = {"1f98a": "fox-face"}
        archive(tmp_path / art_set.archive, files)
    return tmp_path


def test_labels_come_from_code_points_or_words_and_flags_are_left_out(packages):
    found = list(art.drawings(packages))
    assert {(d.label, d.style) for d in found} == {
        (label, art_set.style) for label in ("fox", "woman red hair") for art_set in art.SETS
    }
    assert len(found) == 2 * len(art.SETS)
