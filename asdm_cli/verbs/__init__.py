"""One verb, one file: what it would do (`plan`, from the recipe and from file headers only), and doing it (`run`)."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, cast

from asdm_cli.recipe.verbs import VERBS
from asdm_cli.records import Report


class Plan(Protocol):
    """What a verb would do, found out from the recipe and from file headers only (gate 3)."""

    def report(self) -> Report: ...


class Verb(Protocol):
    """What the file of a verb offers. `recipe`, `plan` and `run` are of the verb's own types."""

    RESUMABLE: bool
    """Whether an interrupted run goes on where it stopped."""

    def plan(self, recipe: Any, **permissions: Any) -> Plan:
        """Check shapes and files; raises ModelError. Nothing slow, nothing written."""

    def run(self, plan: Any, run: Any) -> Report:
        """Do it, writing below `run.path`."""


def verb_of(name: str) -> Verb:
    """Imported only when it runs."""
    return cast(Verb, import_module(f"asdm_cli.verbs.{VERBS[name].MODULE or name}"))
