"""What of a recipe others may read: reports, model cards and records travel further than the recipe itself."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

MASK = "***"
_VALUE = r"[^\s\"'\\&;,<>|]+"
_NAMES = r"[\w-]*(?:token|secret|passw(?:or)?d|credential|signature|api[_-]?key|access[_-]?key)"
_SECRETS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(://)[^\s/@\"'\\<>]+(?=@)",  # user:password@host
        r"(://[^\s\"'\\<>|?]+\?)[^\s\"'\\<>|]+",  # what follows a URL's question mark may be a signature
        rf"(\bauthorization: ?(?:bearer|basic|token) +){_VALUE}",
        rf"(\b{_NAMES} ?[=:] ?[\"']?){_VALUE}",
        rf"(\s--?{_NAMES} +[\"']?){_VALUE}",
        rf"(\s(?:-u|--user)[ =][\"']?){_VALUE}",
        r"(\b)(?:hf_|ghp_|github_pat_|glpat-|AKIA)\w{16,}",
    )
)
"""The first group stays, the rest of the match is the secret."""


def redacted(text: str) -> str:
    """The text with `***` for passwords, tokens and signatures in URLs and commands: `https://***@host/a.tar?***`."""
    for secret in _SECRETS:
        text = secret.sub(rf"\g<1>{MASK}", text)
    return text


def without_secrets(data: Any) -> Any:
    """Plain data with every text in it redacted: before it is written, since writing may break lines anywhere."""
    if isinstance(data, dict):
        return {key: without_secrets(value) for key, value in data.items()}
    if isinstance(data, list):
        return [without_secrets(value) for value in data]
    return redacted(data) if isinstance(data, str) else data


def without_place(source: str) -> str:
    """A path as it was written if it is relative, else its last part: where things lie on a machine says nothing
    elsewhere."""
    return PurePath(source).name if PurePath(source).is_absolute() or source.startswith("~") else source
