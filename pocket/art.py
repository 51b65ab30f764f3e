"""The drawings the pocket model learns from: six free colour-emoji sets, by name and licence."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asdm_cli.errors import RunError

# emojibase's, but those whose drawings are near-text or memorised one by one: components, symbols, flags.
_GROUPS = {0: "smileys", 1: "people", 3: "nature", 4: "food", 5: "travel", 6: "activities", 7: "objects"}


@dataclass(frozen=True)
class ArtSet:
    """One icon package: `style` is the word captions use for its look."""

    package: str
    version: str
    style: str
    licence: str
    source: str

    @property
    def archive(self) -> str:
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"


_GOOGLE, _MICROSOFT = "https://github.com/googlefonts/noto-emoji", "https://github.com/microsoft/fluentui-emoji"
SETS = (
    ArtSet("@iconify-json/noto", "1.2.9", "noto", "Apache-2.0", _GOOGLE),
    ArtSet("@iconify-json/noto-v1", "1.2.5", "blob", "Apache-2.0", _GOOGLE),
    ArtSet("@iconify-json/twemoji", "1.2.5", "twemoji", "CC-BY-4.0", "https://github.com/jdecked/twemoji"),
    ArtSet("@iconify-json/fluent-emoji", "1.2.7", "fluent", "MIT", _MICROSOFT),
    ArtSet("@iconify-json/fluent-emoji-flat", "1.2.6", "flat", "MIT", _MICROSOFT),
    ArtSet("@iconify-json/emojione", "1.2.3", "emojione", "CC-BY-4.0", "https://github.com/EmojiTwo/emojitwo"),
)
LABELS = ArtSet("emojibase-data", "17.0.0", "", "MIT", "https://github.com/milesj/emojibase")
# Styles that share one drawing: they stay on one side of the split.
SAME_DRAWING = ({"fluent", "flat"},)


@dataclass(frozen=True)
class Drawing:
    """One picture before rendering; `svg` is a whole document."""

    label: str
    style: str
    group: str
    svg: str

    @property
    def caption(self) -> str:
        return f"{self.label}, {self.style} style"


def fetch(folder: Path) -> None:
    """Download every package that `folder` lacks, with npm (which checks their hashes)."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [f"{s.package}@{s.version}" for s in (*SETS, LABELS) if not (folder / s.archive).exists()]
    if not missing:
        return
    try:
        subprocess.run(["npm", "pack", "--silent", *missing], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        raise RunError("npm is needed to fetch the drawings; install Node.js, then run again") from None
    except subprocess.CalledProcessError as error:
        raise RunError(f"npm could not fetch {', '.join(missing)} (exit {error.returncode})") from None


def drawings(folder: Path) -> Iterator[Drawing]:
    """Every drawing with a Unicode label, in a fixed order; skin-tone variants are left out."""
    concepts = _concepts_by_slug(folder)
    for art in SETS:
        icons = _read(folder / art.archive, "package/icons.json")
        assert icons is not None, art.archive
        for slug, icon in sorted(icons["icons"].items()):
            concept = concepts.get(slug)
            if concept is not None and concept["group"] in _GROUPS:
                label, group = _words(concept["label"]), _GROUPS[concept["group"]]
                yield Drawing(label, art.style, group, _svg(icon, icons))


def _concepts_by_slug(folder: Path) -> dict[str, dict]:
    """slug -> emojibase entry: by the sets' own code points where they have them, else by the label's words."""
    entries = _read(folder / LABELS.archive, "package/en/data.json")
    assert entries is not None
    by_code = {_code(entry["hexcode"]): entry for entry in entries if "group" in entry}
    by_slug = {_slug(entry["label"]): entry for entry in by_code.values()}
    for art in SETS:
        chars = _read(folder / art.archive, "package/chars.json") or {}
        by_slug |= {slug: by_code[_code(code)] for code, slug in chars.items() if _code(code) in by_code}
    return by_slug


def _read(archive: Path, member: str) -> Any:
    with tarfile.open(archive) as tar:
        try:
            handle = tar.extractfile(member)
        except KeyError:
            return None
        return json.load(handle) if handle else None


def _code(hexcode: str) -> str:
    return "-".join(part for part in hexcode.lower().split("-") if part not in {"fe0f", "200d"})


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def _words(label: str) -> str:
    """'woman: red hair' -> 'woman red hair': the words a person would type."""
    return re.sub(r"\s+", " ", re.sub(r"[^a-z0-9' -]+", " ", label.lower().replace("’", "'"))).strip()


def _svg(icon: dict, icons: dict) -> str:
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
    )
