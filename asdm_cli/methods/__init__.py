"""One verb, one file, one signature; the table here is how the CLI finds them, and imports one only when it runs."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, cast

from asdm_cli.report.document import Report

METHODS = {
    "prune": "asdm_cli.verbs.prune",
    "distill": "asdm_cli.verbs.distill",
    "assemble": "asdm_cli.verbs.assemble",
    "condconv-expand": "asdm_cli.verbs.expand",
    "inherit": "asdm_cli.verbs.inherit",
    "switch": "asdm_cli.verbs.switch",
    "bench": "asdm_cli.verbs.compare",
    "eval": "asdm_cli.verbs.compare",
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
