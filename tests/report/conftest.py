"""Run directories with the images that hand-made reports show."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from asdm_cli.report.document import Report
from tests.report import made, samples

settings.register_profile("patient", deadline=None)  # two busy cores make any test slow now and then
settings.load_profile("patient")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made.draw(tmp_path / "run")


@pytest.fixture
def training() -> Report:
    return samples.training_report()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return samples.draw_pictures(tmp_path / "run")


@pytest.fixture
def bench() -> Report:
    return samples.bench_report()


@pytest.fixture
def evaluation() -> Report:
    return samples.eval_report()
