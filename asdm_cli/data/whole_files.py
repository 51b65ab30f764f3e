"""Files that are whole or not there, whenever the process is killed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from asdm_cli.models.write import sync


def write_json(target: Path, value: Any) -> None:
    _whole(target, lambda partial: partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))


def write_tensors(target: Path, tensors: dict[str, Tensor]) -> None:
    _whole(target, lambda partial: save_file({name: each.contiguous() for name, each in tensors.items()}, partial))


def _whole(target: Path, write: Callable[[Path], object]) -> None:
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        write(partial)
        partial.chmod(mode)  # safetensors makes files that nobody else may read
        sync(partial)
        os.rename(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(target.parent)
