"""Run directories with the images that hand-made reports show."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests.report import made

settings.register_profile("patient", deadline=None)  # two busy cores make any test slow now and then
settings.load_profile("patient")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made.draw(tmp_path / "run")
