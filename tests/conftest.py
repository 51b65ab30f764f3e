"""Models that many tests read and none may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline directory with random weights; read-only by agreement."""
    return tiny.pipeline(tmp_path_factory.mktemp("models") / "tiny")
