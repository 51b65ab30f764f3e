"""What of a recipe others may read: reports, model cards and records travel further than the recipe itself.

No pattern knows every password. So what may hold one, an address or a command, is not written down at all.
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import PurePath
from typing import Any, overload

PIPE = "pipe:"
_ADDRESS = re.compile(r"\S*://\S*")
_SHARD = re.compile(r"[\w{}.,*-]+\.(?:tar|tgz)(?:\.\w+)?")
_REDACTED = re.compile(r"\(sha256 [0-9a-f]{12}\)$")


@overload
def redact(data: str) -> str: ...
@overload
def redact(data: Any) -> Any: ...
def redact(data: Any) -> Any:
    """Plain data with a digest in the place of every address, or of the whole text where it is a command.

    Before anything is written, since writing may break lines anywhere.
    """
    if isinstance(data, dict):
        return {key: redact(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [redact(value) for value in data]
    if not isinstance(data, str):
        return data
    return f"a command {_digest(data)}" if data.startswith(PIPE) else _ADDRESS.sub(_shown, data)


def is_redacted(text: str) -> bool:
    """Whether this is what `redact` writes in the place of a source."""
    return bool(_REDACTED.search(text))


def _shown(address: re.Match[str]) -> str:
    """The file's name, if it is a shard's, the way to it, and a digest of the place.

    A user's name and what follows a question mark change from day to day and are no part of the place: a run that
    was begun under yesterday's signature goes on under today's.
    """
    scheme, _, rest = address[0].partition("://")
    server, _, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    name = path.rpartition("/")[2]
    shown = name if _SHARD.fullmatch(name) else "a file"
    way = scheme if re.fullmatch(r"[a-z][a-z0-9+:]*", scheme) else "address"
    host = server.rpartition("@")[2]
    return f"{shown} by {way} {_digest(f'{scheme}://{host}/{path}')}"


def _digest(text: str) -> str:
    return f"(sha256 {sha256(text.encode(errors='replace')).hexdigest()[:12]})"


def without_place(source: str) -> str:
    """A path as it was written if it is relative, else its last part: where things lie on a machine says nothing
    elsewhere."""
    return PurePath(source).name if _is_absolute(source) else source


def told_apart(source: str) -> str:
    """The same, so that two places of one name stay two: with a digest of the place."""
    return f"{without_place(source)} {_digest(source)}" if _is_absolute(source) else source


def _is_absolute(source: str) -> bool:
    return PurePath(source).is_absolute() or source.startswith("~")
