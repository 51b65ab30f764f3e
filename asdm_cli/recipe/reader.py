"""A recipe file, and what the command line changes in it, as plain data that remembers where every key and value stood.

YAML as people mean it: `1e-4` is a number, `yes` and `no` are words, dates are words. PyYAML speaks YAML 1.1; SCALARS
is the core schema of YAML 1.2 (section 10.3.2), for reading and writing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from asdm_cli.errors import Fault, RecipeError

Where = tuple[str | int, ...]
"""The way to a value: `("models", 0, "name")`."""

MAX_BYTES = 64 * 1024
"""What is no recipe is not a long wait."""
MAX_DEPTH = 32
MAX_NODES = 10_000
TAG = "tag:yaml.org,2002:"
SCALARS: dict[str, tuple[str, list[str], Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""], lambda _: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"], lambda text: {"true": True, "false": False}[text.lower()]),
    "int": (r"[-+]?[0-9]+", [*"-+0123456789"], int),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        [*"-+.0123456789"],
        lambda text: float(re.sub(r"\.(inf|nan)", r"\1", text.lower())),
    ),
}
"""Kind -> how it is written, how it may begin, and what it means; all else is text."""

MERGE = "<<"
"""A key that people know from YAML 1.1: what follows gives its keys, except those that stand beside it."""
HALF_PAIR = re.compile("[\ud800-\udfff]")
NO_TEXT = "is no text: half of a surrogate pair stands in it, for which no file has bytes"


class Loader(yaml.SafeLoader):
    """Composes nodes only; nothing is constructed by tag, so a file cannot name code."""


class Dumper(yaml.SafeDumper):
    """Quotes what `Loader` would otherwise read as something else than text."""

    def ignore_aliases(self, _: Any) -> bool:
        return True


for _speaker in (Loader, Dumper):
    _speaker.yaml_implicit_resolvers = {}  # forget YAML 1.1
    for _kind, (_pattern, _first, _) in SCALARS.items():
        _speaker.add_implicit_resolver(f"{TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)


@dataclass(frozen=True)
class Mark:
    """A place: a line and column from 1, or, for a value that is not from the file, the option that gave it."""

    line: int = 0
    column: int = 0
    option: str = ""

    @classmethod
    def of(cls, node: Node) -> Mark:
        return cls(node.start_mark.line + 1, node.start_mark.column + 1)


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
    merged: dict[Node, dict[str, tuple[Node, Node]]] = field(default_factory=dict)
    """Mapping -> what it takes over by `<<`."""
    root: Where = ()
    """Where in the file `data` lies; `()` is all of it. Other ways start here."""

    def below(self, root: Where, data: dict[str, Any]) -> Source:
        """A part of the file, whose faults are the file's."""

        def inside(marks: dict[Where, Mark]) -> dict[Where, Mark]:
            return {where[len(root) :]: mark for where, mark in marks.items() if where[: len(root)] == root}

        unread = {where[len(root) :] for where in self.unread if where[: len(root)] == root}
        marks = inside(self.keys), inside(self.values)
        return Source(self.file, data, self.faults, *marks, unread, root=(*self.root, *root))

    def fault(self, where: Where, what: str, on_key: bool = False) -> Fault:
        """A fault at the value (or key) `where`, or at the nearest thing around it that has a place."""
        marks = self.keys if on_key and where in self.keys else self.values
        nearest = where
        while nearest and nearest not in marks:
            nearest = nearest[:-1]
        mark = marks.get(nearest, Mark(1, 1))
        return Fault(what, f"{mark.option} {dotted((*self.root, *where))}".strip(), mark.line, mark.column)

    def tell(self, where: Where, what: str, on_key: bool = False) -> None:
        self.faults.append(self.fault(where, what, on_key))

    def read(self, node: Node, where: Where = ()) -> Any:
        """The plain value of a node; remembers its places, and what is wrong with it."""
        self.values[where] = Mark.of(node)
        if len(self.values) > MAX_NODES or len(where) > MAX_DEPTH:
            raise self._too_large(node)
        kind = node.tag.removeprefix(TAG)
        if isinstance(node, MappingNode) and kind == "map":
            return self._mapping(node, where)
        if isinstance(node, SequenceNode) and kind == "seq":
            self.keys |= {(*where, index): Mark.of(item) for index, item in enumerate(node.value)}
            return [self.read(item, (*where, index)) for index, item in enumerate(node.value)]
        if isinstance(node, ScalarNode) and kind in ("str", *SCALARS):
            if HALF_PAIR.search(node.value):
                self.tell(where, NO_TEXT)
                self.unread.add(where)
                return None
            try:
                return SCALARS[kind][2](node.value) if kind in SCALARS else node.value
            except (ValueError, KeyError):
                self.tell(where, f"cannot be read as {kind}: {node.value[:40]!r}")
        else:
            shown = node.tag.replace(TAG, "!!")[:60]
            self.tell(where, f"the tag '{shown}' is not allowed; write the plain value")
        self.unread.add(where)
        return None

    def _too_large(self, node: Node) -> RecipeError:
        what = f"too large: over {MAX_NODES} values or {MAX_DEPTH} levels, aliases counted each time they are used"
        mark = Mark.of(node)
        return RecipeError(self.file, [Fault(what, "", mark.line, mark.column)])

    def _mapping(self, node: MappingNode, where: Where) -> dict[str, Any]:
        data: dict[str, Any] = {}
        own = [pair for pair in node.value if not _merges(pair[0])]
        names = {str(key_node.value) for key_node, _ in own}
        taken = [pair for name, pair in self._merged(node, where).items() if name not in names]
        for key_node, value_node in [*taken, *own]:
            mark, here = Mark.of(key_node), (*where, str(key_node.value))
            if key_node.tag == f"{TAG}str" and HALF_PAIR.search(key_node.value):
                self.faults.append(Fault(NO_TEXT, dotted(where), mark.line, mark.column))
            elif key_node.tag != f"{TAG}str":
                self.faults.append(Fault("a key must be a word", dotted(where), mark.line, mark.column))
            elif key_node.value in data:
                what = f"given twice (first on line {self.keys[here].line})"
                self.faults.append(Fault(what, dotted(here), mark.line, mark.column))
            else:
                self.keys[here] = mark
                data[key_node.value] = self.read(value_node, here)
        return data

    def _merged(self, node: MappingNode, where: Where, depth: int = 0) -> dict[str, tuple[Node, Node]]:
        """Of several mappings the first that has a key gives it."""
        if depth > MAX_DEPTH:
            raise self._too_large(node)
        if node in self.merged:
            return self.merged[node]
        found = self.merged[node] = dict[str, tuple[Node, Node]]()  # a mapping that merges itself finds nothing more
        for value in (value for key, value in node.value if _merges(key)):
            for each in value.value if isinstance(value, SequenceNode) else [value]:
                if not isinstance(each, MappingNode):
                    mark, what = Mark.of(each), "`<<` takes over the keys of a mapping, by its anchor: `<<: *name`"
                    self.faults.append(Fault(what, dotted(where), mark.line, mark.column))
                    continue
                own = {str(key.value): (key, inner) for key, inner in each.value if not _merges(key)}
                found |= {**self._merged(each, where, depth + 1), **own, **found}
        return found


def _merges(key: Node) -> bool:
    return isinstance(key, ScalarNode) and key.value == MERGE


def dotted(where: Where) -> str:
    """`("models", 0, "name")` -> `models[0].name`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")


def read(path: Path) -> Source:
    """Read a file; what stops the reading is raised, what does not is collected in `.faults`."""
    file, raw, wrong = str(path), b"", ""
    if path.is_dir():
        hint = f" (did you mean '{path / 'recipe.yaml'}'?)" if (path / "recipe.yaml").is_file() else ""
        wrong = f"a directory, not a recipe{hint}"
    elif not path.is_file():
        wrong = "not a regular file" if path.exists() else "no such file"
    else:
        try:
            with path.open("rb") as stream:
                raw = stream.read(MAX_BYTES + 1)
        except OSError as error:
            wrong = f"cannot be read: {error.strerror}"
    if wrong or len(raw) > MAX_BYTES:
        raise RecipeError(file, [Fault(wrong or f"larger than {MAX_BYTES // 1024} KiB; this is no recipe")])
    try:
        return parse(raw.decode("utf-8-sig"), file)
    except UnicodeDecodeError as error:
        line, column = _position(raw[: error.start].decode("utf-8", "replace"))
        raise RecipeError(file, [Fault("not UTF-8 text; save the file as UTF-8", "", line, column)]) from None


def parse(text: str, file: str) -> Source:
    """Read the text of a recipe; see `read`."""
    root = _compose(text, file)
    if root is None:
        raise RecipeError(file, [Fault("the file is empty; a recipe starts with `verb:`", "", 1, 1)])
    source = Source(file)
    data = source.read(root)
    if not isinstance(data, dict):
        source.tell((), "a recipe is a mapping of keys, `key: value`")
        raise RecipeError(file, source.faults)
    source.data = data
    return source


def _compose(text: str, file: str) -> Node | None:
    try:
        return yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        line, column = (place.line + 1, place.column + 1) if place else (0, 0)
        what = _plain(error)
    except yaml.reader.ReaderError as error:
        line, column = _position(text[: error.position])
        what = "a character that YAML does not allow"
    except RecursionError:
        line, column, what = 1, 1, f"nested far more than {MAX_DEPTH} levels deep"
    raise RecipeError(file, [Fault(what, "", line, column)])


def _position(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


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
    ours = (ours for theirs, ours in _PLAIN if theirs in said)
    return next(ours, error.problem or error.context or "no YAML")


@dataclass(frozen=True)
class Override:
    """`where` gets `value`; `option` is how the user gave it, for messages."""

    where: Where
    value: Any
    option: str = "--set"

    @classmethod
    def parse(cls, text: str) -> Override:
        """`models.0.name=x`, after --set; the value is read as YAML. Raises RecipeError."""
        path, equals, value = text.partition("=")
        where = tuple(int(part) if part.isdecimal() else part for part in path.strip().split("."))
        if not equals or not all(str(part) for part in where) or not isinstance(where[0], str):
            raise RecipeError("--set", [Fault("write key.path=value, as in models.0.name=teacher", text)])
        source = Source("--set")
        try:
            root = _compose(value, "--set")
        except RecipeError as error:
            raise RecipeError("--set", [Fault(f"is no YAML: {error.faults[0].what}", path)]) from None
        read = None if root is None else source.read(root)
        if source.faults:
            raise RecipeError("--set", [Fault(source.faults[0].what, path)])
        return cls(where, read)


def apply(source: Source, overrides: Sequence[Override]) -> None:
    """Put the overrides into `source` in order; one that leads nowhere becomes one of its faults.

    The place of a new value, and of parents made for it, is the option; what lay in the old value has none.
    """
    for each in overrides:
        each = replace(each, where=_named(source.data, each.where))
        if wrong := _put(source.data, each):
            source.faults.append(Fault(wrong, f"{each.option} {dotted(each.where)}"))
            continue
        depth, mark = len(each.where), Mark(option=each.option)
        for marks in (source.keys, source.values):
            for where in [where for where in marks if where[:depth] == each.where]:
                del marks[where]
            for length in range(1, depth):
                marks.setdefault(each.where[:length], mark)
            marks[each.where] = mark
        source.unread.discard(each.where)


def _named(data: Any, where: Where) -> Where:
    """Digits are a place in a list, and a name elsewhere."""
    found: list[str | int] = []
    for part in where:
        found.append(part if isinstance(data, list) else str(part))
        known = isinstance(data, dict) or (isinstance(data, list) and part in range(len(data)))
        data = (data.get(found[-1]) if isinstance(data, dict) else data[part]) if known else None
    return tuple(found)


def _put(data: Any, override: Override) -> str:
    """Put in the value, making mappings on the way; returns what is wrong, or nothing."""
    *way, last = override.where
    for index, part in enumerate(override.where):
        if isinstance(data, list) and part not in range(len(data)):
            return f"the list has {len(data)} entries, counted from 0; there is no '{part}'"
        if not isinstance(data, list | dict):
            return f"leads nowhere: what should hold '{part}' is a plain value"
        if index < len(way):
            if isinstance(data, dict) and data.get(part) is None:
                data[part] = {}
            data = data[part]
    data[last] = override.value
    return ""
