"""The same pipelines as for plans: whoever switches in one puts it back."""

from __future__ import annotations

from tests.inheritance.conftest import _made, get

__all__ = ["_made", "get"]
