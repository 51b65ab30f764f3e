"""Recipes gone wrong: every shipped recipe, changed in one of the ways that files, hands and programs change them.

`mutated(number)` is the same bytes every time: which recipe, which way and where all come from the number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from asdm_cli.recipe.reader import Loader

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
Span = tuple[int, int]


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
            if isinstance(node, ScalarNode):
                continue
            pairs = (
                [pair[::-1] for pair in node.value]
                if isinstance(node, MappingNode)
                else [(n, None) for n in node.value]
            )
            found += pairs
            waiting += [value for value, _ in pairs]
        return found

    @cached_property
    def spans(self) -> dict[str, list[Span]]:
        nodes = {
            "values": [value for value, _ in self.nodes],
            "scalars": [value for value, _ in self.nodes if isinstance(value, ScalarNode)],
            "keys": [key for _, key in self.nodes if key is not None],
        }
        return {kind: [(n.start_mark.index, n.end_mark.index) for n in each] for kind, each in nodes.items()}

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines(keepends=True)

    def replaced(self, span: Span, by: str) -> str:
        return self.text[: span[0]] + by + self.text[span[1] :]


ORIGINALS = [Original(path.name, path.read_text(encoding="utf-8")) for path in SHIPPED]
ByBytes = Callable[[Random, bytes], bytes]
ByText = Callable[[Random, Original], str]

# --- what disks, editors and other programs do ---

ODD = (b"\0", b"\x1b[31m", b"\x7f", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x85")
NOISE = (*ODD, *(bytes([each]) for each in b":-,[]{}&*!|>'\"#%@`~?\\\t\n "))
ANOTHER = (b"", b"\n", b"{}", b"PK\x03\x04", b"\x89PNG\r\n", b"<html>", b"- 1")


def _flipped(random: Random, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(random.choice((1, 1, 3, 20))):
        changed[random.randrange(len(raw))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _spliced(size: Sequence[int], noise: Sequence[bytes]) -> ByBytes:
    """So many bytes at some place become these."""

    def change(random: Random, raw: bytes) -> bytes:
        start = random.randrange(len(raw))
        return raw[:start] + random.choice(noise) + raw[start + random.choice(size) :]

    return change


BYTES: dict[str, ByBytes] = {
    "bits flipped": _flipped,
    "bytes deleted": _spliced((1, 1, 2, 10, 100), [b""]),
    "bytes inserted": _spliced([0], NOISE),
    "bytes inserted again": _spliced([0], NOISE),
    "Latin-1": _spliced([0], ["éß".encode("latin-1")]),
    "truncated": _spliced([1 << 30], [b""]),
    "begins late": lambda random, raw: raw[random.randrange(len(raw)) :],
    "byte order mark": lambda _, raw: b"\xef\xbb\xbf" + raw,
    "UTF-16": lambda random, raw: raw.decode().encode(random.choice(("utf-16", "utf-16-be", "utf-32"))),
    "Windows lines": lambda _, raw: raw.replace(b"\n", b"\r\n"),
    "Macintosh lines": lambda _, raw: raw.replace(b"\n", b"\r"),
    "tabs": lambda random, raw: raw.replace(b"  ", b"\t", random.choice((1, -1))),
    "noise": lambda random, _: random.randbytes(random.randrange(2000)),
    "another file": lambda random, _: random.choice(ANOTHER),
    "NUL everywhere": lambda _, raw: b"\0".join(raw[at : at + 1] for at in range(len(raw))),
}

# --- other values ---

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
KEYS = ("x" * 400, "1", "null", "true", "''", "[a]", "{a: b}", "? ", "<<", "*a", "&a b", "!!str", "=")
MARKS = ("&a", "*a", "&", "*", "|", ">", "%", "@", "`", "? ", ": ", "- ", "#", '"', "'", "[", "}")
TAGS = (
    *(f"!!{kind}" for kind in ("int", "float", "str", "map", "seq", "set", "binary", "null", "timestamp", "omap")),
    *("!!python/object/apply:os.system", "!!python/name:os.system", "!<tag:yaml.org,2002:bool>", "!mine", "!", "!e!x"),
)


def _becomes(what: str, words: Sequence[str]) -> ByText:
    return lambda random, original: original.replaced(random.choice(original.spans[what]), random.choice(words))


def _decorated(words: Sequence[str]) -> ByText:
    """A value with one of these before it."""

    def change(random: Random, original: Original) -> str:
        start, _ = random.choice(original.spans["values"])
        return original.replaced((start, start), f"{random.choice(words)} ")

    return change


def _misspelt(random: Random, original: Original) -> str:
    span = random.choice(original.spans["keys"])
    word, at = original.text[slice(*span)], random.randrange(span[1] - span[0])
    letter = random.choice(("", "e", "X", "_", "-", " ", "é", word[at] * 2))
    return original.replaced(span, word[:at] + letter + word[at + 1 :])


# --- lines in other places, and the language itself ---


def _lines(random: Random, original: Original, how: str) -> str:
    lines = original.lines
    one, other = random.randrange(len(lines)), random.randrange(len(lines))
    line = lines.pop(one) if how in ("moved", "dropped") else lines[one]
    if how in ("moved", "twice"):
        lines.insert(other if how == "moved" else one, line)
    elif how == "indented":
        lines[one] = random.choice((" ", "  ", "      ", "- ", "\t")) + line
    elif how == "swapped":
        lines[one], lines[other] = lines[other], line
    return "".join(lines)


def _anchored(random: Random, original: Original) -> str:
    """A value named, and used again in the place of another one."""
    one, other = sorted(random.sample(original.spans["scalars"], 2))
    text = original.replaced(other, "*it")
    return text[: one[0]] + "&it " + text[one[0] :]


def _added(lines: Callable[[Random], str]) -> ByText:
    return lambda random, original: original.text + lines(random)


def _bomb(random: Random) -> str:
    depth, width = random.choice(((9, 9), (30, 2), (4, 100), (25, 12)))
    return "\n".join(
        ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth)), ""]
    )


def _deep(random: Random, original: Original) -> str:
    depth = random.choice((10, 30, 31, 32, 33, 100, 1000, 5000))
    left, right = random.choice((("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", ""), ("!!map {a: ", "}"), ("[", "")))
    return original.replaced(random.choice(original.spans["values"]), left * depth + "x" + right * depth)


def _many(random: Random, original: Original) -> str:
    count = random.choice((10, 30, 100, 3000, 12_000))
    entry = random.choice(("1", "x", "'up.0'", "[1, 2]", "{name: a, model: b}"))
    return original.replaced(random.choice(original.spans["values"]), f"[{', '.join([entry] * count)}]")


def _large(random: Random, original: Original) -> str:
    """Round about the limit of a file's size."""
    size = random.choice((200, 255, 256, 257, 300)) * 1024
    word = random.choice(("# comment\n", "\n", "x", " "))
    return original.text + (word * (size // len(word)))[: size - len(original.text)]


def _around(*shapes: str) -> ByText:
    """The recipe in one of these, at `...`."""
    return lambda random, original: random.choice(shapes).replace("...", original.text)


TEXTS: dict[str, ByText] = {
    **{f"{kind} for a scalar": _becomes("scalars", words) for kind, words in VALUES.items()},
    **{f"{kind} for a value": _becomes("values", words) for kind, words in VALUES.items()},
    "another kind of key": _becomes("keys", KEYS),
    "key misspelt": _misspelt,
    "key misspelt again": _misspelt,
    **{
        f"line {how}": lambda random, original, how=how: _lines(random, original, how)  # type: ignore[misc]
        for how in ("twice", "moved", "dropped", "indented", "swapped")
    },
    "key of another recipe": _added(
        lambda random: random.choice([line for line in random.choice(ORIGINALS).lines if re.match(r"\w+:", line)])
    ),
    "verb of another recipe": lambda random, original: re.sub(
        r"verb: \S+", random.choice(ORIGINALS).lines[0].strip(), original.text
    ),
    "below a key": lambda random, original: f"{random.choice(('recipe', 'verb'))}:\n  " + "  ".join(original.lines),
    "alias": _anchored,
    "alias again": _anchored,
    "stray marks": _decorated(MARKS),
    "tags": _decorated(TAGS),
    "tags again": _decorated(TAGS),
    "merge key": _around("...<<: *a\n", "...<<: {steps: 3}\n", "...<<: [{out: x}]\n", "...x: &x {a: 1}\n<<: *x\n"),
    "billion laughs": _added(_bomb),
    "itself inside": _around("...a: &a [*a]\n", "...a: &a {b: *a}\n"),
    "second document": _around("...---\n...", "---\n......\n", "......\nx", "---\n---\n"),
    "directives": _around("%YAML 1.1\n---\n...", "%YAML 9.9\n---\n...", "%TAG ! tag:x,2000:\n---\n...", "%X\n..."),
    "deep": _deep,
    "deep again": _deep,
    "staircase": _added(lambda random: "".join(f"{' ' * n}a{n}:\n" for n in range(random.choice((10, 40, 300))))),
    "long list": _many,
    "many keys": _added(lambda random: "".join(f"key{n}: 1\n" for n in range(random.choice((3, 30, 300, 20_000))))),
    "large": _large,
    "JSON": _around("{...", "[...", '"...', "{\n..."),
}
KINDS = [*BYTES, *TEXTS]


def mutated(number: int) -> tuple[str, bytes]:
    """What was done to which recipe, in words, and the file that came of it."""
    random, kind = Random(number), KINDS[number % len(KINDS)]
    original = random.choice(ORIGINALS)
    if kind in BYTES:
        raw = BYTES[kind](random, original.text.encode())
    else:
        raw = TEXTS[kind](random, original).encode("utf-8", "surrogatepass")
    return f"{number}: {kind} in {original.name}", raw
