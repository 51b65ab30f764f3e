"""What is known of a set-up before its weights are read: faults, sizes, memory, and all that its images depend on."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asdm_cli.compare import setup as module
from asdm_cli.compare.pareto import ALONE
from asdm_cli.compare.setup import (
    REFERENCES,
    Setup,
    check_memory,
    common_size,
    converged,
    drawing,
    fewer_steps,
    misfits,
    output_alone,
    weight_bytes,
)
from asdm_cli.errors import ModelError
from asdm_cli.models.directory import find
from asdm_cli.recipe.patches import CachePlan, DeepCacheSpec, GuidanceScheduleSpec, read_plan, read_switching
from tests import tiny
from tests.carrying import cache, carrying, every, fitted
from tests.compare.setups import CPU, bare, whole
from tests.turns import patches, switching

RULE = {"nodes": "out", "extrapolate": "linear"}


def test_fewer_steps_are_shares_of_the_plain_ones_or_those_asked_for(tiny_pipeline: Path) -> None:
    plain = whole(tiny_pipeline, steps=50, sampler="ddim")
    assert [each.steps for each in fewer_steps(plain, None)] == [40, 32, 25, 18, 10]
    assert [each.steps for each in fewer_steps(replace(plain, steps=2), None)] == [1]
    asked = fewer_steps(plain, [7, 1])
    assert [(each.name, each.steps, each.series, each.sampler) for each in asked] == [
        ("7 steps", 7, "fewer steps", "ddim"),
        ("1 step", 1, "fewer steps", "ddim"),
    ]
    near = converged(plain, 100)
    assert converged(plain, None) is None
    assert near
    assert (near.steps, near.sampler) == (100, "dpm++2m")


def test_the_deepcache_package_is_told_of_the_steps_there_are(tiny_pipeline: Path) -> None:
    """Among others it would not find a call's timestep: plain pictures, at the package's cost."""
    told = (DeepCacheSpec(interval=2, steps=4),)
    package = replace(whole(tiny_pipeline, "package", steps=4), patches=told)
    assert not misfits([package, *fewer_steps(package, [2])])
    what = "package: the DeepCache package is told of 4 steps, and there are 6; give it as many"
    assert misfits([replace(package, steps=6)]) == [what]


def test_a_guidance_schedule_without_guidance_is_refused(tiny_pipeline: Path) -> None:
    scheduled = replace(whole(tiny_pipeline, "scheduled", guidance=3.0), patches=(GuidanceScheduleSpec(start=900),))
    assert not misfits([scheduled])
    (told,) = misfits([replace(scheduled, guidance=1.0)])
    assert told.startswith(
        "scheduled: guidance 1 has no calls without the prompt, which a guidance schedule could leave"
    )
    assert told.endswith("; leave it out, or give more")


def test_sizes(tiny_pipeline: Path) -> None:
    pipeline, unet = whole(tiny_pipeline), bare(shape="sd15")
    assert (pipeline.latent(64), unet.latent(64)) == ((16, 16), (8, 8)), "three stages: 4 pixels per latent"
    assert pipeline.surroundings == (4, tiny.TOKENS)
    with pytest.raises(ModelError, match=r"'whole': size 66 is no multiple of its 4 pixels per latent; round it"):
        pipeline.latent(66)
    larger = replace(pipeline, name="larger", config={**pipeline.config, "sample_size": 16})
    assert common_size(None, [pipeline]) == 32
    assert common_size(48, [pipeline, larger]) == 48
    with pytest.raises(ModelError, match=r"at different sizes \(whole: 32, larger: 64\); give `size`"):
        common_size(None, [pipeline, larger])
    with pytest.raises(ModelError, match=r"36 is no multiple of 8.*try 40"):
        common_size(36, [pipeline])


@pytest.mark.parametrize("name", REFERENCES)
def test_nobody_is_called_as_what_the_report_adds(name: str, tiny_pipeline: Path) -> None:
    assert misfits([whole(tiny_pipeline, name)]) == [
        f"name {name!r} is what the report calls a reference; choose another"
    ]


def test_what_cannot_draw_is_refused(tiny_pipeline: Path, copy: Path) -> None:
    with pytest.raises(ModelError, match="is a bare UNet; whole pictures need a whole pipeline directory"):
        drawing("bare", find(str(tiny_pipeline / "unet")))
    config = copy / "unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "cross_attention_dim": 24}))
    with pytest.raises(ModelError, match=r"text is 16 wide \(hidden_size\), and the UNet"):
        drawing("spoilt", find(str(copy)))


def test_what_a_model_carries_is_in_force_and_may_be_replaced(tiny_pipeline: Path, tmp_path: Path) -> None:
    model = carrying(tiny_pipeline, tmp_path / "model", every(2))
    assert whole(model).cache == cache(every(2))
    assert drawing("it", find(str(model)), carried=False).cache is None
    other = whole(model).with_cache("other", read_plan(every(3)))
    assert (other.name, other.patches) == ("other", (cache(every(3)),))
    turns = whole(switching(tiny_pipeline, tiny_pipeline, tmp_path / "turns"))
    assert list(turns.configs) == list(turns.serving) == ["large", "small v1.5"]
    assert (turns.one_unet, turns.cache) == (False, None)
    ruled = turns.scheduled("ruled", read_switching({"by": "step", "parts": [{"unet": "large"}]}, "test"))
    assert [spec.written() for spec in ruled.patches] != [spec.written() for spec in turns.patches]
    assert (list(ruled.configs), list(ruled.serving)) == (["large", "small v1.5"], ["large"])
    assert len(ruled.patches) == len(turns.patches)
    assert len(ruled.with_cache("both", read_plan(every(2))).patches) == 2


def fitted_to(plain: Setup, calls: int) -> CachePlan:
    scheduler = replace(plain, steps=calls).scheduler
    return read_plan(fitted(type(scheduler).__name__, [float(each) for each in scheduler.timesteps]))


def test_what_was_fitted_to_other_calls_is_told_before_anything_is_drawn(tiny_pipeline: Path) -> None:
    plain = whole(tiny_pipeline, steps=4)
    plan = plain.with_cache("fitted", fitted_to(plain, 4))
    assert misfits([plain, plan]) == []
    others = [replace(plan, name="five", steps=5), replace(plan, name="dpm", sampler="dpm++2m")]
    told = misfits([*others, *fewer_steps(plan, [2])])
    assert [each.partition(": ")[0] for each in told] == ["five", "dpm", "2 steps"]
    assert all("were fitted for 4 UNet calls" in each for each in told)
    assert told[-1].endswith("name a model without a plan")


def test_a_fitted_plan_is_refused_where_unets_take_turns(tiny_pipeline: Path, tmp_path: Path) -> None:
    turns = whole(switching(tiny_pipeline, tiny_pipeline, tmp_path / "turns"))
    assert misfits([turns, turns.with_cache("plan", read_plan(every(2)))]) == []
    (told,) = misfits([turns.with_cache("plan", fitted_to(turns, 4))])
    assert told.startswith("plan: the plan of these UNets was fitted to all calls of a generation, and here UNets take")


def test_near_the_solution_nothing_is_inherited(tiny_pipeline: Path, tmp_path: Path) -> None:
    turns = whole(switching(tiny_pipeline, tiny_pipeline, tmp_path / "turns"))
    near = converged(turns.with_cache("plan", read_plan(every(2))), 9)
    assert near is not None
    assert (near.steps, near.patches) == (9, turns.patches)


def test_a_line_takes_no_name_that_is_somebody_s(tiny_pipeline: Path) -> None:
    plan = whole(tiny_pipeline, "plan", every(2))
    (line,) = output_alone([plan])
    (other,) = output_alone([plan, whole(tiny_pipeline, line.name)])
    assert other.name != line.name
    assert other.patches == line.patches
    guided = replace(plan, name="guided", patches=(*plan.patches, GuidanceScheduleSpec(until=300)))
    lines = output_alone([plan, guided])
    assert [each.name for each in lines] == [line.name, f"{line.name}, guidance in an interval"]
    assert GuidanceScheduleSpec(until=300) in lines[1].patches


def test_nothing_left_out_has_no_line_beside_it(tiny_pipeline: Path) -> None:
    text = whole(tiny_pipeline).with_cache("text", read_plan({"rules": every(1)["rules"], "cache_text": True}))
    assert output_alone([text]) == []


def test_memory_is_that_of_everything_that_is_loaded(tiny_pipeline: Path) -> None:
    unet, *others = (
        tiny_pipeline / "unet/diffusion_pytorch_model.safetensors",
        tiny_pipeline / "text_encoder/model.safetensors",
        tiny_pipeline / "vae/diffusion_pytorch_model.safetensors",
    )
    held, around = (
        sum(tensor.numel() for file in files for tensor in load_file(file).values()) for files in ([unet], others)
    )
    plain = whole(tiny_pipeline)
    assert weight_bytes(plain, 4, CPU) == 4 * (held + around)
    assert weight_bytes(replace(plain, draws=False), 2, CPU) == 2 * held
    for offload, unets in ((True, 1), (False, 2)):
        turns = replace(plain, patches=tuple(patches(offload=offload)), unets={"small v1.5": find(str(tiny_pipeline))})
        assert weight_bytes(turns, 1, torch.device("cuda")) == unets * held + around, "those that wait are elsewhere"


def test_too_little_memory_is_told_with_numbers_and_one_body_is_needed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def free(amount: int) -> None:
        monkeypatch.setattr(module.psutil, "virtual_memory", lambda: SimpleNamespace(available=amount))

    alike, other = [bare(f"plan {each}", plan=every(each)) for each in (2, 3)], bare("other", "sd21")
    weights = [weight_bytes(each, 4, CPU) for each in (alike[0], other)]
    free(sum(weights))
    assert list(check_memory([*alike, other], CPU, torch.float32).values()) == weights
    free(sum(weights) - 1)
    told = rf"\({' '.join(['plan 2 0.00,', 'other 0.00'])}\) and 0.00 GB are free on cpu: use a smaller dtype"
    with pytest.raises(ModelError, match=told):
        check_memory([*alike, other], CPU, torch.float32)
    assert check_memory([*alike, other], CPU, torch.float16)


def test_images_are_of_another_origin_when_anything_changes_that_they_depend_on(
    tiny_pipeline: Path, copy: Path
) -> None:
    plain = whole(copy)
    turns = replace(whole(tiny_pipeline), patches=tuple(patches()), unets={"small v1.5": find(str(copy))})
    seen = [
        plain.origin(),
        *(replace(plain, **change).origin() for change in ({"steps": 5}, {"guidance": 2.0}, {"sampler": "ddim"})),
        plain.with_cache("it", read_plan(every(2))).origin(),
        plain.with_cache("it", read_plan(every(3))).origin(),
        replace(plain, made_of={"taken": "all"}).origin(),
        turns.origin(),
    ]
    os.utime(copy / "unet/diffusion_pytorch_model.safetensors", (1, 1))
    seen += [plain.origin(), turns.origin()]
    written = [json.dumps(each, sort_keys=True) for each in seen]
    assert len(set(written)) == len(seen)
    assert replace(plain, name="other", series="x").origin() == plain.origin()


def test_beside_plans_stand_lines_through_the_output_once_and_beside_lines_none(tiny_pipeline: Path) -> None:
    def of(name: str, **rule: Any) -> Setup:
        rules = [{"nodes": "out", "schedule": {"mode": "uniform", "interval": 2}, **rule}]
        return whole(tiny_pipeline, name, {"rules": rules}, steps=6)

    block, zeus = of("block", nodes="up.3"), of("zeus", extrapolate="interleaved")
    (alone,) = output_alone([block, zeus, whole(tiny_pipeline)])
    assert (alone.name, alone.series) == ("output alone, 3 calls of 6", ALONE)
    assert alone.cache is not None
    assert (
        alone.cache.rules
        == read_plan({"rules": [{**RULE, "schedule": {"mode": "explicit", "steps": [0, 2, 4]}}]}).rules
    )
    for line in (of("line", order=1), of("line", extrapolate="linear"), of("line", nodes=["out"], order=1)):
        assert output_alone([block, line]) == output_alone([line, alone]) == []
    curved = [of("curve", order=2), of("noise", order=1, space="eps"), of("angle", order=1, axis="angle")]
    assert [len(output_alone([each])) for each in curved] == [1, 1, 1]
    third = of("third", nodes="up.3", schedule={"mode": "explicit", "steps": [0, 1, 5]})
    names = [each.name for each in output_alone([block, third])]
    assert names == ["output alone, 3 calls of 6", "output alone, 3 calls of 6, steps 0 1 5"]
