"""Run directories with the images that hand-made reports show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from asdm_cli.report import charts
from tests.report import made

settings.register_profile("patient", deadline=None)  # two busy cores make any test slow now and then
settings.load_profile("patient")


INLINE = charts.inline  # before any test has run


@pytest.fixture(scope="package", autouse=True)
def _plots_are_drawn(_plots_are_blank: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "inline", INLINE)
        yield


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made.draw(tmp_path / "run")
