"""asdm.json beside a model's index: which verbs made it, from what. Stock diffusers does not look at it. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asdm_cli import __version__
from asdm_cli.models.source import ModelDirectory
from asdm_cli.unet.weight_files import inside, read_mapping

FILE = "asdm.json"
HISTORY = "history"


def history(directory: ModelDirectory) -> list[dict[str, Any]]:
    """What was done to this model, oldest first; nothing for models that did not come from here."""
    file = directory.path / FILE
    return read_mapping(inside(directory.path, file)).get(HISTORY, []) if file.exists() else []


def record(source: ModelDirectory, target: Path, verb: str, **facts: Any) -> None:
    """Write `target`'s history: that of its source, then this verb. Names only: paths say nothing elsewhere."""
    step = {"verb": verb, "asdm": __version__, "source": source.name, **facts}
    text = json.dumps({HISTORY: [*history(source), step]}, indent=2, ensure_ascii=False)
    (target / FILE).write_text(f"{text}\n", encoding="utf-8")
