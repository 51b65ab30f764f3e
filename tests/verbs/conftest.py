"""What is drawn while a verb runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from PIL.Image import Image

from asdm_cli.compare import run as comparing


class Drawing:
    """The `indices` of images that were drawn, whichever set-up's; Ctrl-C is pressed `before` so many are."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.before: int | None = None
        self.real = comparing.draw

    def __call__(self, *args: Any, **more: Any) -> Iterator[tuple[int, Image]]:
        for index, image in self.real(*args, **more):
            self.indices.append(index)
            if len(self.indices) == self.before:
                raise KeyboardInterrupt
            yield index, image


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Drawing:
    watched = Drawing()
    monkeypatch.setattr(comparing, "draw", watched)
    return watched
