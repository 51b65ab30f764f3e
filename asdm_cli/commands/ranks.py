"""Who speaks and writes when `accelerate launch` started several of us."""

from __future__ import annotations

import os


def is_first() -> bool:
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def is_alone() -> bool:
    return os.environ.get("WORLD_SIZE", "1") == "1"


def is_lost_company(error: Exception) -> bool:
    """Whether this is how a process learns that another one of its run has gone, or cannot be reached."""
    said = type(error).__name__.startswith("Dist") or "gloo/" in str(error)  # gloo's have no kind of their own
    return isinstance(error, RuntimeError) and said and not is_alone()


def wait_for_everyone() -> None:
    """Return when every process has come here; at once when there is only one."""
    if is_alone():
        return
    from asdm_cli.sampling.processes import processes

    processes().wait_for_everyone()
