"""Captions, prompts and tables as text: the one way in which bytes become lines."""

from __future__ import annotations


def as_text(data: bytes) -> str:
    """UTF-8 without a byte order mark. Raises UnicodeDecodeError."""
    return data.decode("utf-8-sig")


def lines(text: str) -> list[str]:
    """Split at \\n and \\r\\n and at nothing else: U+2028 or a form feed may stand inside a caption."""
    return [line.removesuffix("\r") for line in text.split("\n")]
