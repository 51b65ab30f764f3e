"""Whether what was written shares a file with what it was made from: then a change of one would be a change of both."""

from __future__ import annotations

from pathlib import Path


def shared(result: Path, *sources: Path) -> set[str]:
    """Files below `result` that are also below a source, under whatever name; links are followed."""
    theirs = {_file(file) for source in sources for file in source.rglob("*")}
    return {str(file.relative_to(result)) for file in result.rglob("*") if file.is_file() and _file(file) in theirs}


def _file(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_dev, about.st_ino
