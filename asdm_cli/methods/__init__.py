"""One verb, one file, one signature; the table here is how the CLI finds them, and imports one only when it runs."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, cast

from asdm_cli.report.document import Report

METHODS = {
    "prune": "asdm_cli.methods.prune",
    "distill": "asdm_cli.methods.distill",
    "assemble": "asdm_cli.methods.assemble",
    "condconv-expand": "asdm_cli.methods.condconv",
    "inherit": "asdm_cli.methods.inherit",
    "switch": "asdm_cli.methods.switch",
    "bench": "asdm_cli.methods.bench",
    "eval": "asdm_cli.methods.evaluate",
    "run": "asdm_cli.methods.pipeline.run",
}


class Plan(Protocol):
    """What a verb would do, found out from the recipe and from file headers only (gate 3)."""

    def report(self) -> Report: ...


class Method(Protocol):
    """What every module of this room offers. `recipe`, `plan` and `run` are of the verb's own types."""

    RESUMABLE: bool
    """Whether an interrupted run goes on where it stopped."""

    def plan(self, recipe: Any, **permissions: Any) -> Plan:
        """Check shapes and files; raises ModelError. Nothing slow, nothing written."""

    def run(self, plan: Any, run: Any) -> Report:
        """Do it, writing below `run.path`."""


def method(verb: str) -> Method:
    return cast(Method, import_module(METHODS[verb]))
