"""Models that many tests read and none may change; one thread for everything."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from markupsafe import Markup

from asdm_cli.report import charts
from tests import expanding, tiny
from tests.turns import pruned


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Here and in every process that a test starts: sums over tiny tensors may differ by a bit between numbers of
    threads, and more threads than one only wait for each other."""
    os.environ["OMP_NUM_THREADS"] = "1"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _libraries_are_no_garbage() -> None:
    """What was imported stays to the end; to look through it at every collection takes a sixth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Tests press Ctrl-C; a shell's background job, and all that it starts, would not hear it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _plots_are_blank() -> Iterator[None]:
    """Elsewhere than in tests/report: matplotlib takes a third of a verb's time on models as small as these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "inline", lambda *_: charts.Chart([Markup("<svg></svg>")], []))
        yield


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline directory with random weights; read-only by agreement."""
    return tiny.pipeline(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def shallow_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a UNet of two levels, for all that draws a lot whatever the levels; read-only by agreement."""
    return tiny.pipeline(tmp_path_factory.mktemp("models") / "shallow", **tiny.SHALLOW["sd15"])


@pytest.fixture
def copy(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """The tiny pipeline, which a test may spoil."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "copy"))


@pytest.fixture(scope="session")
def tiny_small(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model directory of the tiny pipeline without the layers of Small; read-only by agreement."""
    return pruned(tiny_pipeline, tmp_path_factory.mktemp("small") / "run")


@pytest.fixture(scope="session")
def tiny_base(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the tiny pipeline without the layers of Base; read-only by agreement."""
    recipe = {"verb": "prune", "model": str(tiny_pipeline), "remove": "base"}
    return expanding.done(tmp_path_factory.mktemp("base"), recipe)


@pytest.fixture(scope="session")
def shallow_base(shallow_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the shallow pipeline without the layers of Base; read-only by agreement."""
    recipe = {"verb": "prune", "model": str(shallow_pipeline), "remove": "base"}
    return expanding.done(tmp_path_factory.mktemp("base"), recipe)


@pytest.fixture(scope="session")
def tiny_experts(tiny_pipeline: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model directory of Base with three experts that differ; read-only by agreement."""
    what = {"experts": 3, "donor": str(tiny_pipeline)}
    recipe = {"verb": "condconv-expand", "model": str(tiny_base), "expand": what}
    return expanding.stirred(expanding.done(tmp_path_factory.mktemp("experts"), recipe) / "model")
