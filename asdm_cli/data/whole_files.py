"""Files that are whole or not there, whenever the process is killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asdm_cli.models.write import sync


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield a place beside `target` to write to; what was written there becomes `target`, durably, or goes away."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors makes files that nobody else may read
        sync(partial)
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(target.parent)
