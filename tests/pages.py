"""What is in our Markdown: commands, code, recipes, headings and links, each with its page and line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"```(\w*)\n")
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6} (.+)$", re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block; `kind` is the word after its fence, nothing for lines to type."""

    page: str
    line: int
    kind: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Every line to type, with its place, as a shell splits it; a backslash goes on in the next one."""
        number = self.line + 1
        for line in re.split(r"(?<!\\)\n", self.text):
            if words := shlex.split(line.replace("\\\n", ""), comments=True):
                yield f"{self.page}:{number}", words
            number += line.count("\n") + 1


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[Block]:
    text, start = page.read_text(), 0
    while match := FENCE.search(text, start):
        start = text.index("\n```\n", match.start()) + 5
        line = text.count("\n", 0, match.start()) + 1
        yield Block(name(page), line, match[1], text[match.end() : start - 4])


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    text = page.read_text()
    for block in blocks(page):
        text = text.replace(f"```{block.kind}\n{block.text}```\n", "")
    return text


def spans(page: Path) -> list[str]:
    """What stands in backticks within the prose."""
    return SPAN.findall(prose(page))


def links(page: Path) -> list[str]:
    return [next(filter(None, groups)) for groups in LINK.findall(prose(page))]


def anchors(page: Path) -> list[str]:
    """Anchors of the headings, as GitHub makes them."""
    shown = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).lower() for heading in HEADING.findall(prose(page))]
    return [re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in shown]
