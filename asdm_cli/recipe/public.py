"""What of a recipe others may read: reports, model cards and records travel further than the recipe itself.

No pattern knows every password. So what may hold one, an address or a command, is not written down at all.
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import PurePath
from typing import Any

PIPE = "pipe:"
_ADDRESS = re.compile(r"\S*://\S*")
_SHARD = re.compile(r"[\w{}.,*-]+\.(?:tar|tgz)(?:\.\w+)?")
_WITHHELD = re.compile(r"\(sha256 [0-9a-f]{12}\)$")


def public(text: str) -> str:
    """The text with a digest in the place of every address, or of the whole where it is a command."""
    if text.startswith(PIPE):
        return f"a command {_digest(text)}"
    return _ADDRESS.sub(lambda found: _withheld(found[0]), text)


def is_withheld(text: str) -> bool:
    """Whether this is what `public` writes in the place of a source."""
    return bool(_WITHHELD.search(text))


def _withheld(address: str) -> str:
    """The file's name, if it is a shard's, the way to it, and a digest of the place.

    A user's name and what follows a question mark change from day to day and are no part of the place: a run that
    was begun under yesterday's signature goes on under today's.
    """
    scheme, _, rest = address.partition("://")
    server, _, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    name = path.rpartition("/")[2]
    shown = name if _SHARD.fullmatch(name) else "a file"
    way = scheme if re.fullmatch(r"[a-z][a-z0-9+:]*", scheme) else "address"
    host = server.rpartition("@")[2]
    return f"{shown} by {way} {_digest(f'{scheme}://{host}/{path}')}"


def _digest(text: str) -> str:
    return f"(sha256 {sha256(text.encode(errors='replace')).hexdigest()[:12]})"


def without_secrets(data: Any) -> Any:
    """Plain data with every text in it made public: before it is written, since writing may break lines anywhere."""
    if isinstance(data, dict):
        return {key: without_secrets(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_secrets(value) for value in data]
    return public(data) if isinstance(data, str) else data


def without_place(source: str) -> str:
    """A path as it was written if it is relative, else its last part: where things lie on a machine says nothing
    elsewhere."""
    return PurePath(source).name if PurePath(source).is_absolute() or source.startswith("~") else source
