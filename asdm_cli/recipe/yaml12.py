"""YAML as people mean it: `1e-4` is a number, `yes` and `no` are words, dates are words.

PyYAML speaks YAML 1.1; the tables here are the core schema of YAML 1.2 (section 10.3.2), for reading and writing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml
from yaml.nodes import Node, ScalarNode

MAX_DEPTH = 32
MAX_NODES = 10_000

_RULES = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)

SCALARS: dict[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:null": lambda _: None,
    "tag:yaml.org,2002:bool": lambda text: {"true": True, "false": False}[text.lower()],
    "tag:yaml.org,2002:int": int,
    "tag:yaml.org,2002:float": lambda text: float(re.sub(r"\.(inf|nan)", r"\1", text.lower())),
    "tag:yaml.org,2002:str": str,
}


class Loader(yaml.SafeLoader):
    """Composes nodes only; nothing is constructed by tag, so a file cannot name code."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """As PyYAML, but a file of a thousand open brackets is an error with a place, not a full stack, and one of a
        hundred thousand values not a long wait."""
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH:
            self._stop(f"nested more than {MAX_DEPTH} levels deep")
        if self.nodes > MAX_NODES:
            self._stop(f"too large: over {MAX_NODES} keys and values")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _stop(self, problem: str) -> None:
        place = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=place)


class Dumper(yaml.SafeDumper):
    """Quotes what `Loader` would otherwise read as something else than text."""

    def ignore_aliases(self, _: Any) -> bool:
        return True


for _speaker in (Loader, Dumper):
    _speaker.yaml_implicit_resolvers = {}  # forget YAML 1.1
    for _kind, _pattern, _first in _RULES:
        _speaker.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)


def tag_refused(node: Node) -> str:
    return f"the tag '{node.tag.replace('tag:yaml.org,2002:', '!!')[:60]}' is not allowed; write the plain value"


def scalar(node: ScalarNode) -> Any:
    """The plain value of a scalar; ValueError when its tag is not allowed or does not fit its text."""
    read = SCALARS.get(node.tag)
    if read is None:
        raise ValueError(tag_refused(node))
    try:
        return read(node.value)
    except (ValueError, KeyError):
        raise ValueError(f"cannot be read as {node.tag.rpartition(':')[2]}: {node.value[:40]!r}") from None
