"""The grammar of address patterns, and what to say when one names nothing. Knows words, no UNet."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

UNITS = {"resnet", "attn", "self", "cross", "ff", "sampler"}


def match(pattern: str, addresses: Iterable[str]) -> frozenset[str]:
    """The addresses that `pattern` names.

    Words are matched one by one with shell wildcards: `up.*.1`, `down.[01].0.attn`. Where the last word is a
    unit, a leading `*` stands for everything in front: `*.self`, `*.1.attn`.
    """
    wanted = pattern.split(".")
    anywhere = len(wanted) > 1 and wanted[0] == "*" and wanted[-1] in UNITS
    if anywhere:
        wanted = wanted[1:]
    return frozenset(address for address in addresses if _fits(wanted, address.split("."), anywhere))


def _fits(wanted: list[str], words: list[str], anywhere: bool) -> bool:
    if anywhere:
        words = words[-len(wanted) :]
    return len(words) == len(wanted) and all(fnmatchcase(*pair) for pair in zip(words, wanted, strict=True))


def unknown(pattern: str, names: Iterable[str]) -> str:
    """`pattern: this UNet has no such address (did you mean ...?)`."""
    names = list(names)
    close = get_close_matches(pattern, names, n=1)
    blocks = [name for name in names if name == "mid" or (name.count(".") == 1 and name[-1].isdigit())]
    hint = f"did you mean {close[0]!r}?" if close else f"its blocks are {', '.join(sorted(set(blocks)))}"
    return f"{pattern}: this UNet has no such address ({hint})"
