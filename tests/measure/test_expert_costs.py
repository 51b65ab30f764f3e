"""What experts cost as it is told: a bench's figures, and images counted with the mixing of their kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import asdm_cli
from asdm_cli.models.directory import find
from asdm_cli.profiling.macs import count
from asdm_cli.unet.flops import macs
from tests import tiny
from tests.expanding import done, expand, picture, run, unet


def test_a_bench_has_the_figures_of_the_configs(
    tiny_experts: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "asdm_cli.measure.bench.in_fresh_process", lambda _name, work, *given: work(*given)
    )  # which takes seconds each
    (tmp_path / "tiny.json").write_text(json.dumps(tiny.shape("sd15")))
    shape = str(tmp_path / "tiny.json")
    grown = {"experts": 2, "donor": shape, "router": "features"}
    models: list[dict[str, Any]] = [
        {"name": "base", "model": str(tiny_base)},
        {"name": "wide", "model": str(tiny_experts)},
        {"name": "random", "random": shape, "remove": "base", "expand": grown},
    ]
    recipe = {"verb": "bench", "models": models, "batches": [1], "repeats": 1, "warmups": 1, "steps": 2}
    said = run(tmp_path, recipe, "--dry-run")
    assert said.code == 0, said.err
    assert "without base, 2 experts by features" in said.text
    text = (done(tmp_path, recipe) / "report.json").read_text()
    assert "random tiny.json without base, 2 experts by features" in text
    parts = json.loads(text)["parts"]
    rows = {row["name"]: row for part in parts if part["title"] == "Cost" for row in part["rows"]}
    assert list(rows) == ["base", "wide", "random"]
    for name, model in (("base", tiny_base), ("wide", tiny_experts)):
        whole, config = unet(model), find(str(model)).config("unet")
        assert rows[name]["unet_params_m"] == pytest.approx(sum(each.numel() for each in whole.parameters()) / 1e6)
        assert rows[name]["unet_macs_g"] == pytest.approx(macs(config, tokens=tiny.TOKENS).total / 1e9)
        assert rows[name]["image_ms"] is not None
    assert all(row["unet_ms"] is not None for row in rows.values())
    assert rows["base"]["unet_params_m"] < rows["random"]["unet_params_m"] < rows["wide"]["unet_params_m"]
    assert rows["base"]["image_macs_g"] < rows["wide"]["image_macs_g"]


WRONG: dict[str, dict[str, Any]] = {
    "models[0].expand: goes with 'random' only; expand it first": {"model": "pocket", "expand": {"at": ["mid"]}},
    "contestant 'a': nowhere": {"random": "sd15", "expand": {"at": ["nowhere"]}},
    "contestant 'a': random 'sd99': neither a preset": {"random": "sd15", "expand": {"donor": "sd99"}},
    "contestant 'a': expand.at: no block has fewer layers": {"random": "sd15", "expand": {"donor": "sd15"}},
    "models[0].expand.noise: goes with 'start: noise'": {"random": "sd15", "expand": {"at": ["mid"], "noise": 0.1}},
}


@pytest.mark.parametrize("message", WRONG)
def test_contestants_whose_experts_do_not_fit(message: str, tmp_path: Path) -> None:
    said = run(tmp_path, {"verb": "bench", "models": [{"name": "a", **WRONG[message]}]}, "--dry-run")
    assert (said.code, said.out) == (2, "")
    assert message in said.text, said.err


@pytest.mark.parametrize("router", ["time", "both"])
def test_images_are_counted_with_their_mixing(tiny_base: Path, tmp_path: Path, router: str) -> None:
    """All of it, although the picture before may have left kernels."""
    assert expand(tmp_path, tiny_base, experts=2, at=["down.1"], router=router).code == 0
    pipe: Any = asdm_cli.load(str(tmp_path / "run"), "cpu")
    wanted = macs(dict(pipe.unet.config), batch=2, tokens=tiny.TOKENS).total
    for _ in range(2):
        picture(pipe)
        seen = count("it", {"unet": pipe.unet}, lambda: picture(pipe))
        assert (seen.calls, seen.rows) == (3, 6)
        assert seen.components["unet"].total == 3 * wanted
