"""A recipe file as plain data that remembers where each key and value stood."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from asdm_cli.errors import Fault, RecipeError
from asdm_cli.recipe.yaml12 import MAX_DEPTH, MAX_NODES, Loader, scalar, tag_refused

Where = tuple[str | int, ...]
"""The way to a value: `("models", 0, "name")`."""

MAX_BYTES = 256 * 1024


@dataclass(frozen=True)
class Mark:
    """A place: a line and column from 1, or, for a value that is not from the file, the option that gave it."""

    line: int = 0
    column: int = 0
    option: str = ""


@dataclass
class Source:
    """`keys[where]` is the place of a key (of a list entry: its start), `values[where]` that of its value."""

    file: str
    data: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    keys: dict[Where, Mark] = field(default_factory=dict)
    values: dict[Where, Mark] = field(default_factory=dict)
    unread: set[Where] = field(default_factory=set)
    """Values that could not be read as what they are; their fault is told already."""
    root: Where = ()
    """Where in the file `data` lies; `()` is all of it. Other ways start here."""

    def below(self, root: Where, data: dict[str, Any]) -> Source:
        """A part of the file, whose faults are the file's."""

        def inside(marks: dict[Where, Mark]) -> dict[Where, Mark]:
            return {where[len(root) :]: mark for where, mark in marks.items() if where[: len(root)] == root}

        unread = {where[len(root) :] for where in self.unread if where[: len(root)] == root}
        return Source(self.file, data, self.faults, inside(self.keys), inside(self.values), unread, (*self.root, *root))

    def fault(self, where: Where, what: str, on_key: bool = False) -> Fault:
        """A fault at the value (or key) `where`, or at the nearest thing around it that has a place."""
        marks = self.keys if on_key and where in self.keys else self.values
        nearest = where
        while nearest and nearest not in marks:
            nearest = nearest[:-1]
        mark = marks.get(nearest, Mark(1, 1))
        return Fault(what, f"{mark.option} {dotted((*self.root, *where))}".strip(), mark.line, mark.column)


def dotted(where: Where) -> str:
    """`("models", 0, "name")` -> `models[0].name`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return text.removeprefix(".")


def read(path: Path) -> Source:
    """Read a file; what stops the reading is raised, what does not is collected in `.faults`."""
    return parse(_text(path), str(path))


def parse(text: str, file: str) -> Source:
    """Read the text of a recipe; see `read`."""
    root = _compose(text, file)
    if not isinstance(root, MappingNode):
        mark = _mark(root)
        raise RecipeError(file, [Fault("a recipe is a mapping of keys, `key: value`", "", mark.line, mark.column)])
    source = Source(file)
    reader = _Reader(source)
    source.data = reader.mapping(root, ())
    return source


def parse_value(text: str) -> Any:
    """The value of an override, read as YAML; ValueError says what is wrong."""
    try:
        root = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"is no YAML: {_plain(error)}") from None
    except yaml.YAMLError:
        raise ValueError("holds a character that YAML does not allow") from None
    if root is None:
        return None
    source = Source("")
    value = _Reader(source).value(root, ())
    if source.faults:
        raise ValueError(source.faults[0].what)
    return value


class _Reader:
    """Turns nodes into plain data, filling in the marks and faults of a Source."""

    def __init__(self, source: Source):
        self.source = source
        self.nodes = 0

    def value(self, node: Node, where: Where) -> Any:
        mark = _mark(node)
        self.source.values[where] = mark
        self.nodes += 1
        if self.nodes > MAX_NODES or len(where) > MAX_DEPTH:
            self._stop(mark)
        if isinstance(node, MappingNode):
            return self.mapping(node, where)
        if isinstance(node, SequenceNode):
            return self._sequence(node, where)
        assert isinstance(node, ScalarNode)
        try:
            return scalar(node)
        except ValueError as error:
            self._fault(str(error), where, mark)
            self.source.unread.add(where)
            return None

    def mapping(self, node: MappingNode, where: Where) -> dict[str, Any]:
        data: dict[str, Any] = {}
        self._check_tag(node, where, "map")
        for key_node, value_node in node.value:
            mark = _mark(key_node)
            if key_node.tag != "tag:yaml.org,2002:str":
                self._fault("a key must be a word", where, mark)
                continue
            key = key_node.value
            here = (*where, key)
            if key in data:
                first = self.source.keys[here].line
                self._fault(f"given twice (first on line {first})", here, mark)
                continue
            self.source.keys[here] = mark
            data[key] = self.value(value_node, here)
        return data

    def _sequence(self, node: SequenceNode, where: Where) -> list[Any]:
        self._check_tag(node, where, "seq")
        items = []
        for index, item in enumerate(node.value):
            here = (*where, index)
            self.source.keys[here] = _mark(item)
            items.append(self.value(item, here))
        return items

    def _check_tag(self, node: Node, where: Where, kind: str) -> None:
        if node.tag != f"tag:yaml.org,2002:{kind}":
            self._fault(tag_refused(node), where, _mark(node))
            self.source.unread.add(where)

    def _fault(self, what: str, where: Where, mark: Mark) -> None:
        self.source.faults.append(Fault(what, dotted(where), mark.line, mark.column))

    def _stop(self, mark: Mark) -> None:
        what = f"too large: over {MAX_NODES} values or {MAX_DEPTH} levels, aliases counted each time they are used"
        raise RecipeError(self.source.file, [Fault(what, "", mark.line, mark.column)])


def _text(path: Path) -> str:
    file = str(path)
    if path.is_dir():
        hint = f" (did you mean '{path / 'recipe.yaml'}'?)" if (path / "recipe.yaml").is_file() else ""
        raise RecipeError(file, [Fault(f"a directory, not a recipe{hint}")])
    if not path.exists():
        raise RecipeError(file, [Fault("no such file")])
    if not path.is_file():
        raise RecipeError(file, [Fault("not a regular file")])
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(file, [Fault(f"cannot be read: {error.strerror}")]) from None
    if len(raw) > MAX_BYTES:
        raise RecipeError(file, [Fault(f"larger than {MAX_BYTES // 1024} KiB; this is no recipe")])
    return _decode(raw, file)


def _decode(raw: bytes, file: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _position(raw[: error.start].decode("utf-8", "replace"))
        raise RecipeError(file, [Fault("not UTF-8 text; save the file as UTF-8", "", line, column)]) from None


def _compose(text: str, file: str) -> Node:
    try:
        root = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        line, column = (place.line + 1, place.column + 1) if place else (0, 0)
        raise RecipeError(file, [Fault(_plain(error), "", line, column)]) from None
    except yaml.reader.ReaderError as error:
        line, column = _position(text[: error.position])
        raise RecipeError(file, [Fault("a character that YAML does not allow", "", line, column)]) from None
    if root is None:
        raise RecipeError(file, [Fault("the file is empty; a recipe starts with `verb:`", "", 1, 1)])
    return root


def _position(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _mark(node: Node) -> Mark:
    return Mark(node.start_mark.line + 1, node.start_mark.column + 1)


_PLAIN = (
    ("found character '\\t'", "a tab; indent with spaces"),
    ("alias", "text that starts with '*' needs quotes, as in '*.self'; without them it is a YAML alias"),
    ("anchor", "text that starts with '&' needs quotes; without them it is a YAML anchor"),
    ("but found another document", "a recipe is one document; remove the second '---'"),
    ("mapping values are not allowed", "a ':' in the wrong place; is the line above unfinished, or a quote missing?"),
    ("could not find expected ':'", "a key without ':'"),
)
"""What PyYAML says -> what a person can act on. What is not here is shown as PyYAML says it."""


def _plain(error: yaml.MarkedYAMLError) -> str:
    said = f"{error.context or ''} {error.problem or ''}"
    for theirs, ours in _PLAIN:
        if theirs in said:
            return ours
    return error.problem or error.context or "no YAML"
