"""Training state on disk: every checkpoint is whole or absent, and only the newest few are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from asdm_cli.console import note
from asdm_cli.data.whole_files import whole_file
from asdm_cli.errors import RunError


def save(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> None:
    """Write `folder/step-N.pt`; a kill at any moment leaves the previous one usable.

    Raises RunError, with the last good checkpoint, where the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}.pt"
    try:
        with whole_file(target) as partial:
            torch.save(state, partial)
    except (OSError, RuntimeError) as error:  # torch's own writer turns a full disk into a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunError(
            f"{target}: cannot be written ({reason}); make room, then go on from {last_good(folder)}"
        ) from None
    for old in _all(folder)[:-keep]:
        old.unlink()


def latest(folder: Path) -> dict[str, Any] | None:
    """The newest state that can be read, loaded on the CPU without running any code from the file; None if there is no
    checkpoint. Raises RunError where there are some and all are damaged."""
    found = _all(folder)
    for file in reversed(found):
        try:
            if not file.is_file():  # a pipe would be waited for
                raise ValueError("no regular file")
            state: Any = torch.load(file, map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or type(state.get("step")) is not int:
                raise ValueError("holds no state of a training")
            return state
        except MemoryError:
            raise
        except Exception as error:  # torch has many ways to say that a file is damaged
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            note(f"{file}: cannot be read ({reason}); going on from the checkpoint before it")
    if found:
        raise RunError(f"{folder}: none of its {len(found)} checkpoints can be read; take it away, and start anew")
    return None


def last_good(folder: Path) -> str:
    """In words, for messages."""
    found = _all(folder)
    return str(found[-1]) if found else "the start: there is no checkpoint yet"


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"))
