"""Recipes gone wrong: every shipped recipe, changed in one of the ways that files, hands and programs change them.

`mutated(number)` is the same bytes every time: which recipe, which way and where all come from the number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from asdm_cli.recipe.reader import Loader

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


@dataclass(frozen=True)
class Original:
    """A shipped recipe and where its parts stand: (start, end) in the text."""

    name: str
    text: str

    @cached_property
    def nodes(self) -> list[tuple[Node, Node | None]]:
        """Every value, with its key where it has one."""
        found: list[tuple[Node, Node | None]] = []
        waiting: list[Node] = [yaml.compose(self.text, Loader=Loader)]
        while waiting:
            node = waiting.pop()
            if isinstance(node, MappingNode):
                found += [(value, key) for key, value in node.value]
                waiting += [value for _, value in node.value]
            elif not isinstance(node, ScalarNode):
                found += [(value, None) for value in node.value]
                waiting += node.value
        return found

    @cached_property
    def values(self) -> list[tuple[int, int]]:
        return [_span(value) for value, _ in self.nodes]

    @cached_property
    def scalars(self) -> list[tuple[int, int]]:
        return [_span(value) for value, _ in self.nodes if isinstance(value, ScalarNode)]

    @cached_property
    def keys(self) -> list[tuple[int, int]]:
        return [_span(key) for _, key in self.nodes if key is not None]

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines(keepends=True)

    def replaced(self, span: tuple[int, int], by: str) -> str:
        return self.text[: span[0]] + by + self.text[span[1] :]


def _span(node: Node) -> tuple[int, int]:
    return node.start_mark.index, node.end_mark.index


ORIGINALS = [Original(path.name, path.read_text(encoding="utf-8")) for path in SHIPPED]


def _at(random: Random, raw: bytes) -> int:
    return random.randrange(len(raw))


def _flipped(random: Random, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(random.choice((1, 1, 3, 20))):
        changed[_at(random, raw)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _deleted(random: Random, raw: bytes) -> bytes:
    start = _at(random, raw)
    return raw[:start] + raw[start + random.choice((1, 1, 2, 10, 100)) :]


ODD = (b"\0", b"\x1b[31m", b"\x7f", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x85")
MARKS = b":-,[]{}&*!|>'\"#%@`~?\\\t\n "


def _inserted(random: Random, raw: bytes) -> bytes:
    start = _at(random, raw)
    noise = random.choice((*ODD, *(bytes([each]) for each in MARKS)))
    return raw[:start] + noise + raw[start:]


def _crlf(_: Random, raw: bytes) -> bytes:
    return raw.replace(b"\n", b"\r\n")


def _tabs(random: Random, raw: bytes) -> bytes:
    return raw.replace(b"  ", b"\t", random.choice((1, -1)))


def _swapped(random: Random, raw: bytes) -> bytes:
    """Two lines in each other's place."""
    lines = raw.splitlines(keepends=True)
    one, other = random.randrange(len(lines)), random.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


BYTES: dict[str, Callable[[Random, bytes], bytes]] = {
    "bits flipped": _flipped,
    "bytes deleted": _deleted,
    "bytes inserted": _inserted,
    "bytes inserted again": _inserted,
    "truncated": lambda random, raw: raw[: _at(random, raw)],
    "begins late": lambda random, raw: raw[_at(random, raw) :],
    "byte order mark": lambda _, raw: b"\xef\xbb\xbf" + raw,
    "UTF-16": lambda random, raw: raw.decode().encode(random.choice(("utf-16", "utf-16-be", "utf-32"))),
    "Latin-1": lambda random, raw: raw[: (at := _at(random, raw))] + "éß".encode("latin-1") + raw[at:],
    "Windows lines": _crlf,
    "Macintosh lines": lambda _, raw: raw.replace(b"\n", b"\r"),
    "tabs": _tabs,
    "lines swapped": _swapped,
    "noise": lambda random, _: random.randbytes(random.randrange(2000)),
    "another file": lambda random, _: random.choice(
        (b"", b"\n", b"{}", b"PK\x03\x04", b"\x89PNG\r\n", b"<html>", b"- 1")
    ),
    "NUL everywhere": lambda _, raw: b"\0".join(raw[at : at + 1] for at in range(len(raw))),
}

HUGE = "9" * 300
VALUES: dict[str, list[str]] = {
    "a list": ["[1, 2]", "[]", "[[]]", "[a, [b, {c: d}]]", "[null]", "[{}, {}]"],
    "a mapping": ["{a: b}", "{}", "{name: x, model: y}", "{kind: task}", "{1: 2}", "{until: 3}"],
    "nothing": ["~", "null", "", "''"],
    "true or false": ["true", "false", "TRUE"],
    "a huge number": [HUGE, f"-{HUGE}", "9" * 5000, "1e308", "1e999", f"0.{HUGE}", "18446744073709551616"],
    "no number": [".inf", "-.inf", ".nan", "0x1F", "0o17", "1_000", "1,5", "12:30:45", "1e", "--1"],
    "another number": ["-1", "0", "1", "0.5", "-0.0", "1e-320", "007", "+3"],
    "a date": ["2026-01-01", "2026-01-01T00:00:00Z", "12:00"],
    "words of YAML 1.1": ["yes", "no", "on", "off", "y", "N"],
    "long text": ["x" * 300, "x" * 5000, "'" + "word " * 2000 + "'", "é" * 1000],
    "odd text": ["漢字🦊", "'\u202eabc'", '"\\u0000"', '"\\uD800"', '"\\x1b[31m"', "'%s %d {0} {x!r}'", "'[bold]x[/]'"],
    "paths": ["../../x", "/dev/zero", "/", ".", "~root", "CON", "'a\\b'", "a//b", "'{0..9}'", "{0..9}", "pipe:reboot"],
    "a pattern": ["'*'", "'**'", "'up.*.*.*'", "'[a-'", "'(((('", "'.'", "'up.99'", "'*' "],
}


def _valued(kind: str) -> Callable[[Random, Original], str]:
    def change(random: Random, original: Original) -> str:
        spans = original.values if random.random() < 0.3 else original.scalars
        return original.replaced(random.choice(spans), random.choice(VALUES[kind]))

    return change


def _misspelt(random: Random, original: Original) -> str:
    span = random.choice(original.keys)
    word, at = original.text[slice(*span)], random.randrange(span[1] - span[0])
    letter = random.choice(("", "e", "X", "_", "-", " ", "é", word[at] * 2))
    return original.replaced(span, word[:at] + letter + word[at + 1 :])


def _key_becomes(random: Random, original: Original) -> str:
    word = random.choice(
        ("x" * 400, "1", "null", "true", "''", "[a]", "{a: b}", "? ", "<<", "*a", "&a b", "!!str", "=")
    )
    return original.replaced(random.choice(original.keys), word)


def _line_twice(random: Random, original: Original) -> str:
    at = random.randrange(len(original.lines))
    return "".join([*original.lines[: at + 1], original.lines[at], *original.lines[at + 1 :]])


def _line_moved(random: Random, original: Original) -> str:
    lines = list(original.lines)
    line = lines.pop(random.randrange(len(lines)))
    lines.insert(random.randrange(len(lines) + 1), line)
    return "".join(lines)


def _line_indented(random: Random, original: Original) -> str:
    lines, at = list(original.lines), random.randrange(len(original.lines))
    lines[at] = random.choice((" ", "  ", "      ", "- ", "\t")) + lines[at]
    return "".join(lines)


def _key_of_another(random: Random, original: Original) -> str:
    other = random.choice(ORIGINALS)
    return original.text + random.choice([line for line in other.lines if re.match(r"\w+:", line)])


def _nested(random: Random, original: Original) -> str:
    """The whole recipe below a key."""
    return f"{random.choice(('recipe', 'verb', 'model'))}:\n" + "".join(f"  {line}" for line in original.lines)


TYPES = {f"{kind} for a value": _valued(kind) for kind in VALUES}
KEYS: dict[str, Callable[[Random, Original], str]] = {
    "key misspelt": _misspelt,
    "key misspelt again": _misspelt,
    "another kind of key": _key_becomes,
    "line twice": _line_twice,
    "line moved": _line_moved,
    "line dropped": lambda random, original: original.replaced((0, 0), "").replace(
        random.choice(original.lines), "", 1
    ),
    "line indented": _line_indented,
    "key of another recipe": _key_of_another,
    "verb of another recipe": lambda random, original: re.sub(
        r"verb: \S+", random.choice(ORIGINALS).lines[0].strip(), original.text
    ),
    "below a key": _nested,
}


def _anchored(random: Random, original: Original) -> str:
    """A value named, and used again in the place of another one."""
    one, other = sorted(random.sample(original.scalars, 2))
    text = original.replaced(other, "*it")
    return text[: one[0]] + "&it " + text[one[0] :]


def _decorated(words: tuple[str, ...]) -> Callable[[Random, Original], str]:
    """A value with one of these before it."""

    def change(random: Random, original: Original) -> str:
        start, _ = random.choice(original.values)
        return original.replaced((start, start), f"{random.choice(words)} ")

    return change


def _bomb(random: Random, original: Original) -> str:
    depth, width = random.choice(((9, 9), (30, 2), (4, 100), (25, 12)))
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth))]
    return original.text + "\n".join(lines) + "\n"


def _deep(random: Random, original: Original) -> str:
    depth = random.choice((10, 30, 31, 32, 33, 100, 1000, 5000))
    left, right = random.choice((("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", ""), ("!!map {a: ", "}"), ("[", "")))
    return original.replaced(random.choice(original.values), left * depth + "x" + right * depth)


def _staircase(random: Random, original: Original) -> str:
    depth = random.choice((10, 40, 300))
    return original.text + "".join(f"{' ' * level}a{level}:\n" for level in range(depth))


def _many(random: Random, original: Original) -> str:
    count = random.choice((10, 30, 100, 3000, 12_000))
    list_of = random.choice(("1", "x", "'up.0'", "[1, 2]", "{name: a, model: b}"))
    return original.replaced(random.choice(original.values), f"[{', '.join([list_of] * count)}]")


def _many_keys(random: Random, original: Original) -> str:
    return original.text + "".join(f"key{number}: 1\n" for number in range(random.choice((3, 30, 300, 300, 20_000))))


def _large(random: Random, original: Original) -> str:
    """Round about the limit of a file's size."""
    size = random.choice((200, 255, 256, 257, 300)) * 1024
    word = random.choice(("# comment\n", "\n", "x", " "))
    return original.text + (word * (size // len(word)))[: size - len(original.text)]


TAGS = (
    *(f"!!{kind}" for kind in ("int", "float", "str", "map", "seq", "set", "binary", "null", "timestamp", "omap")),
    "!!python/object/apply:os.system",
    "!!python/name:os.system",
    "!<tag:yaml.org,2002:bool>",
    "!mine",
    "!",
    "!e!x",
)
LANGUAGE: dict[str, Callable[[Random, Original], str]] = {
    "alias": _anchored,
    "alias again": _anchored,
    "stray marks": _decorated(
        ("&a", "*a", "&", "*", "|", ">", "%", "@", "`", "? ", ": ", "- ", "#", '"', "'", "[", "}")
    ),
    "tags": _decorated(TAGS),
    "tags again": _decorated(TAGS),
    "merge key": lambda random, original: (
        original.text + random.choice(("<<: *a\n", "<<: {steps: 3}\n", "<<: [{out: x}]\n", "x: &x {a: 1}\n<<: *x\n"))
    ),
    "billion laughs": _bomb,
    "itself inside": lambda random, original: original.text + random.choice(("a: &a [*a]\n", "a: &a {b: *a}\n")),
    "second document": lambda random, original: random.choice(
        (f"{original.text}---\n{original.text}", f"---\n{original.text}...\n", f"{original.text}...\nx", "---\n---\n")
    ),
    "directives": lambda random, original: (
        random.choice(("%YAML 1.1\n---\n", "%YAML 9.9\n---\n", "%TAG ! tag:x,2000:\n---\n", "%X\n")) + original.text
    ),
    "deep": _deep,
    "deep again": _deep,
    "staircase": _staircase,
    "long list": _many,
    "many keys": _many_keys,
    "large": _large,
    "JSON": lambda random, original: original.replaced((0, 0), random.choice(("{", "[", '"', "{\n"))),
}

KINDS = [*BYTES, *TYPES, *KEYS, *LANGUAGE]


def mutated(number: int) -> tuple[str, bytes]:
    """What was done to which recipe, in words, and the file that came of it."""
    random, kind = Random(number), KINDS[number % len(KINDS)]
    original = random.choice(ORIGINALS)
    if kind in BYTES:
        raw = BYTES[kind](random, original.text.encode())
    else:
        raw = (TYPES | KEYS | LANGUAGE)[kind](random, original).encode("utf-8", "surrogatepass")
    return f"{number}: {kind} in {original.name}", raw
