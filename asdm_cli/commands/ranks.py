"""Who speaks and writes when `accelerate launch` started several of us."""

from __future__ import annotations

import os


def is_first() -> bool:
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def is_alone() -> bool:
    return os.environ.get("WORLD_SIZE", "1") == "1"


def wait_for_everyone() -> None:
    """Return when every process has come here; at once when there is only one."""
    if is_alone():
        return
    from asdm_cli.measure.processes import processes

    processes().wait_for_everyone()
