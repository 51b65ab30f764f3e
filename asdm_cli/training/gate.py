"""What is wrong with a recipe beyond its own text: collected, so that all of it is told at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from asdm_cli.errors import ModelError


class Faults:
    """Collects what is wrong, each with its key, so that all of it is told at once."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def add(self, key: str, what: str) -> None:
        self.told.append(f"{key}: {what}")

    def catch(self, key: str, look: Callable[[], Any]) -> Any:
        """What `look` returns, or None after a ModelError, which is kept."""
        with self.catching(key):
            return look()

    @contextmanager
    def catching(self, key: str) -> Iterator[None]:
        try:
            yield
        except ModelError as error:
            self.add(key, str(error))

    def raise_all(self) -> None:
        if self.told:
            raise ModelError("\n".join(dict.fromkeys(self.told)))
