"""Guidance in an interval of the generation: the rows that do without the prompt are left out elsewhere, in every
pipeline whose rows are known, under whatever else is in force; and nothing changes where nothing is left out."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPAGPipeline, UNet2DConditionModel
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import asdm_cli
from asdm_cli.errors import ModelError, RecipeError
from asdm_cli.models.directory import find
from asdm_cli.models.metadata import write_patched
from asdm_cli.patches.base import Trajectory, applied, live_on, patch_of
from asdm_cli.patches.guidance import GROUPS, GUIDED, HALVES, PROMPT, guided
from asdm_cli.patches.rows import take_rows
from asdm_cli.recipe.patches import UNGUIDED, GuidanceScheduleSpec
from asdm_cli.report import run_directory
from asdm_cli.unet import flops
from tests import tiny
from tests.carrying import every
from tests.expanding import done, figures, run
from tests.patches import pipes
from tests.patches.guided import GROUPS as ROWS
from tests.patches.guided import KINDS, by_hand, latents, pipe_of, with_rows
from tests.patches.parts import small
from tests.patches.pipes import draw, shallow
from tests.patches.test_compile import SMALLEST, compiled
from tests.patches.test_half_rows import CACHE, FULL, HALF, REUSED, SMALL, TURNS, counted, drawn
from tests.turns import read_patches
from tests.typed import asdm

STEPS = 8
THRESHOLD = {"nodes": "up.1", "schedule": {"mode": "threshold", "threshold": 0.1}}
ADAPTIVE: dict[str, Any] = {"kind": "feature-cache", "rules": [THRESHOLD]}
"""What it measures, and so its key steps, would change if it saw one half of the rows."""
CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
"""Other numbers of rows round otherwise."""


def interval(start: float | None = None, until: float | None = None, by: str = "step", **more: Any) -> dict[str, Any]:
    bounds = {"start": start, "until": until}
    given = {key: bound for key, bound in bounds.items() if bound is not None}
    return {"kind": "guidance-schedule", "by": by, **given, **more}


def put(pipe: Any, *patches: dict[str, Any]) -> Any:
    """In force on a pipeline, in a `with` block."""
    return applied(
        pipe, [patch_of(spec) for spec in read_patches(list(patches), "test")], lambda _: small(shallow=True)
    )


# Drawing --------------------------------------------------------------------------------------------------------------

EVERYTHING = (interval(), interval(0, 50, outside="reuse"), interval(-99, 99, by="log-snr", outside="difference"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_interval_that_is_everything_changes_no_bit(kind: str) -> None:
    pipe = pipe_of(kind)
    plain, rows = with_rows(pipe, partial(latents, kind, 3, count=2))
    for spec in EVERYTHING:
        with put(pipe, spec) as told:
            assert torch.equal(latents(kind, 3, count=2), plain)
            assert told().figures == {"guided_calls": 0 if kind == "consistency" else len(rows)}
    with put(pipe, interval(1, 2)) as told:
        unguided = latents(kind, 3, guidance_scale=1.0)
        assert told().figures == {"guided_calls": 0}
    assert torch.equal(latents(kind, 3, guidance_scale=1.0), unguided), "without guidance there is nothing to leave out"
    assert torch.equal(latents(kind, 3, count=2), plain)
    assert not [each for each in pipe.unet.modules() if hasattr(each, "_diffusers_hook")]


@pytest.mark.parametrize(
    ("sampler", "others"),
    [("pndm", ()), ("unipc", ()), *(("heun", each) for each in ((), (CACHE,), (ADAPTIVE,), (TURNS,), (TURNS, CACHE)))],
)
def test_nor_does_it_with_others_in_force(sampler: str, others: Sequence[dict[str, Any]]) -> None:
    pipe = shallow(sampler=sampler)
    for settings in ({}, {"guidance_scale": 1.0}):
        expected, stats = drawn(pipe, *others, **settings)
        picture, same = drawn(pipe, *others, interval(), **settings)
        assert torch.equal(picture, expected)
        assert (same.served, same.reused) == (stats.served, stats.reused)


@pytest.mark.parametrize("outside", UNGUIDED)
@pytest.mark.parametrize("kind", KINDS)
def test_outside_the_interval_it_draws_as_a_loop_by_hand(kind: str, outside: str) -> None:
    pipe, inside, groups = pipe_of(kind), range(1, 4), ROWS.get(kind, HALVES)
    work = partial(latents, kind, count=2)
    with put(pipe, interval(1, 4, outside=outside)) as told:
        picture, rows = with_rows(pipe, work)
        assert told().figures == {"guided_calls": len(inside) if groups else 0}
    assert rows == [2 * len(groups) if groups and call in inside else 2 for call in range(len(rows))]
    if not groups:
        assert torch.equal(picture, work())
        return
    assert torch.allclose(picture, by_hand(pipe, groups, inside, outside, work), **CLOSE)
    assert not torch.allclose(picture, work(), atol=1e-2)


def test_pictures_per_prompt_and_a_control_net_for_the_prompt_alone() -> None:
    for kind, settings in (("text", {"num_images_per_prompt": 2}), ("control", {"guess_mode": True})):
        pipe = pipe_of(kind)
        settings["generator"] = None
        noise = torch.randn(2 if kind == "text" else 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

        def work(settings: dict[str, Any] = settings, noise: Tensor = noise, pipe: Any = pipe) -> Tensor:
            given = pipes._pictures(type(pipe).__name__, 32, 1)
            return pipe("a fox", num_inference_steps=4, output_type="latent", latents=noise, **given, **settings).images

        with put(pipe, interval(1, 3)):
            picture, rows = with_rows(pipe, work)
        half = len(noise)
        assert rows == [half, 2 * half, 2 * half, half]
        assert torch.allclose(picture, by_hand(pipe, HALVES, range(1, 3), "conditional", work), **CLOSE)


def test_rescaled_guidance_of_nothing_is_nothing() -> None:
    pipe = pipe_of("text")
    work = partial(latents, "text", guidance_rescale=0.7)
    with put(pipe, interval(2, 3)):
        picture = work()
    assert torch.allclose(picture, by_hand(pipe, HALVES, range(2, 3), "conditional", work), **CLOSE)


# Where the interval lies ----------------------------------------------------------------------------------------------

PLACES: dict[str, list[float]] = {
    "timestep": [901, 801, 701, 701, 501, 401, 301, 201, 101, 1],
    "log-snr": [-4, -3, -2, -1, 0, 1, 2, 3, 4, 5],
}
"""With a timestep twice, as Heun's method has them."""
INTERVALS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "open": (interval(by="timestep"), [*range(10)]),
    "from a timestep on, itself included": (interval(701, by="timestep"), [*range(2, 10)]),
    "until a timestep, itself left out": (interval(until=701, by="timestep"), [0, 1]),
    "between two": (interval(700, 250, by="timestep"), [4, 5, 6]),
    "no call in it": (interval(290, 210, by="timestep"), []),
    "before the run": (interval(2000, 950, by="timestep"), []),
    "log-SNRs rise": (interval(-2, 3, by="log-snr"), [2, 3, 4, 5, 6]),
    "of the steps that are done": (interval(0.2, 0.7, by="fraction"), [2, 3, 4, 5, 6]),
    "calls": (interval(9), [9]),
    "more calls than there are": (interval(3, 99), [*range(3, 10)]),
}


@pytest.mark.parametrize("name", INTERVALS)
def test_which_calls_have_guidance(name: str) -> None:
    spec, expected = INTERVALS[name]
    trajectory = Trajectory(10, lambda axis, _: PLACES[axis])
    found = guided(GuidanceScheduleSpec.model_validate(spec), trajectory)
    assert [call for call, has in enumerate(found) if has] == expected


def test_image_to_image_begins_where_its_trajectory_does() -> None:
    """Six of ten steps, from timestep 501 on: calls count from there, timesteps are what they are."""
    pipe = shallow("image")
    for spec, expected in (
        (interval(2, 3), 1),
        (interval(350, 150, by="timestep"), 2),
        (interval(600, 450, "timestep"), 1),
    ):
        with put(pipe, spec) as told:
            _, rows = with_rows(pipe, partial(draw, pipe, 10, strength=0.6))
            assert told().figures == {"guided_calls": expected}
        assert (len(rows), rows.count(2)) == (6, expected)


# Arguments with rows --------------------------------------------------------------------------------------------------

FOUR = 4
EVERY_ARGUMENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "a timestep each": ({}, {"timestep": torch.tensor([1, 200, 500, 900])}),
    "one timestep for all": ({}, {"timestep": torch.tensor([500])}),
    "classes": ({"num_class_embeds": 5}, {"class_labels": torch.tensor([0, 1, 2, 3])}),
    "scales of guidance": ({"time_cond_proj_dim": 8}, {"timestep_cond": torch.randn(FOUR, 8)}),
    "masks": (
        {},
        {"encoder_attention_mask": torch.tensor([[1] * (16 - each) + [0] * each for each in range(FOUR)]).float()},
    ),
    "sizes and a pooled text": (
        {"shape": "sdxl"},
        {"added_cond_kwargs": {"text_embeds": torch.randn(FOUR, 8), "time_ids": torch.randn(FOUR, 6)}},
    ),
    "a picture for an adapter": (
        {"image": True},
        {"added_cond_kwargs": {"image_embeds": [torch.randn(FOUR, 1, tiny.IMAGE_WIDTH)]}},
    ),
    "a scale for attention": ({}, {"cross_attention_kwargs": {"scale": 0.5}}),
}


def call_of(config: dict[str, Any], more: dict[str, Any]) -> tuple[UNet2DConditionModel, dict[str, Any]]:
    changes = {"shape": "sd15", **config}
    adapted = changes.pop("image", False)
    shape = changes.pop("shape")
    unet = tiny.unet(tiny.shape(shape, **tiny.SHALLOW[shape], **changes))
    if adapted:
        unet._load_ip_adapter_weights([tiny.image_adapter(unet)])
        for parameter in unet.parameters():  # the adapter's are zero
            parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.05)
    noise = torch.Generator().manual_seed(1)
    text = torch.randn(FOUR, 16, 16, generator=noise)
    return unet, {
        "sample": torch.randn(FOUR, 4, 8, 8, generator=noise),
        "timestep": 500,
        "encoder_hidden_states": text,
        **more,
    }


@pytest.mark.parametrize("part", [slice(2, 4), slice(1, 2), slice(0, 4)])
@pytest.mark.parametrize("name", EVERY_ARGUMENT)
def test_a_call_on_some_rows_answers_those(name: str, part: slice) -> None:
    unet, named = call_of(*EVERY_ARGUMENT[name])
    with torch.no_grad():
        whole = unet(**named).sample
        _, fewer = take_rows((), named, part)
        assert torch.allclose(unet(**fewer).sample, whole[part], atol=1e-5)
        (*by_place,) = (named.pop(key) for key in ("sample", "timestep", "encoder_hidden_states"))
        placed, fewer = take_rows(tuple(by_place), named, part)
        assert torch.allclose(unet(*placed, **fewer).sample, whole[part], atol=1e-5)
    assert len(placed) == 3


@pytest.mark.parametrize("adapter", [False, True])
def test_residuals_of_other_networks_have_rows(adapter: bool) -> None:
    unet, named = call_of({}, {})
    shapes = [(8, 8), (8, 8), (8, 8), (8, 4), (16, 4), (16, 4)]
    if adapter:
        sizes = [(8, 8), (16, 4)]
        named["down_intrablock_additional_residuals"] = [torch.randn(FOUR, wide, size, size) for wide, size in sizes]
    else:
        named["down_block_additional_residuals"] = tuple(torch.randn(FOUR, wide, size, size) for wide, size in shapes)
        named["mid_block_additional_residual"] = torch.randn(FOUR, 16, 4, 4)
    with torch.no_grad():
        whole = unet(**copy.deepcopy(named)).sample
        _, fewer = take_rows((), named, slice(1, 3))
        assert torch.allclose(unet(**fewer).sample, whole[1:3], atol=1e-5)
    assert not torch.allclose(unet(**call_of({}, {})[1]).sample, whole, atol=1e-2)


def test_rows_that_are_not_known_are_refused() -> None:
    _, named = call_of({}, {})
    masks = {"cross_attention_kwargs": {"ip_adapter_masks": [torch.ones(1, 1, 8, 8)] * 4, "scale": 1.0}}
    assert (
        take_rows((), {**named, **masks}, slice(0, 2))[1]["cross_attention_kwargs"] is masks["cross_attention_kwargs"]
    )
    for more, what in (
        ({"cross_attention_kwargs": {"gligen": {"boxes": torch.ones(4, 2)}}}, "cross_attention_kwargs.gligen: nobody"),
        (
            {"added_cond_kwargs": {"image_embeds": [torch.ones(3, 2)]}},
            "4 rows and its added_cond_kwargs.image_embeds[0] has 3",
        ),
    ):
        with pytest.raises(ModelError, match=what.replace("[", r"\[")):
            take_rows((), {**named, **more}, slice(0, 2))


# Beside others --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "image", "control", "xl"])
def test_a_plan_keeps_the_memory_of_the_rows_that_stay(kind: str) -> None:
    """The same as a plan under a loop by hand, where the rows that come later come at a key step."""
    pipe = pipe_of(kind)
    work, nodes = partial(latents, kind, count=2), "up.1" if kind == "xl" else "up.0"
    # a forecast from two key steps has both of each half only where both begin together
    for start, until, outside, order in ((2, 4, "conditional", 0), (None, 3, "difference", 1)):
        plan, inside = {"kind": "feature-cache", **every(2, nodes, order=order)}, range(start or 0, until)
        with put(pipe, plan, interval(start, until, outside=outside)) as told:
            picture, rows = with_rows(pipe, work)
            reused = told().reused["unet"]
        assert reused == [(FULL, REUSED)[call % 2] for call in range(len(reused))]
        assert rows == [4 if call in inside else 2 for call in range(len(reused))]
        with put(pipe, plan):
            expected = by_hand(pipe, HALVES, inside, outside, work)
        assert torch.allclose(picture, expected, **CLOSE)


def test_rows_that_come_between_key_steps_make_one() -> None:
    _, stats = drawn(shallow(), CACHE, interval(3, 6))
    assert stats.reused["unet"] == [FULL, REUSED, FULL, FULL, FULL, REUSED, FULL, REUSED]


def test_the_order_of_the_list_means_nothing() -> None:
    spec = interval(1, 4, outside="difference")
    seen = [drawn(shallow(), *order) for order in permutations([spec, TURNS, CACHE])]
    for picture, stats in seen:
        assert torch.equal(picture, seen[0][0])
        assert stats.served == (*"aabbbbbb",)
        assert stats.reused == {"a": [FULL, FULL], "b": [FULL, REUSED] * 3}
        assert stats.figures == {"guided_calls": 3}
    for fewer in ([spec, TURNS], [spec, CACHE], [TURNS, CACHE]):
        assert not torch.equal(drawn(shallow(), *fewer)[0], seen[0][0]), "each of them does something"


def test_the_null_model_stands_for_the_rows_that_are_there() -> None:
    nulls = {**TURNS, "parts": [{"unet": "a", "until": 5}, {"unet": "reuse"}]}
    picture, stats = drawn(shallow(), interval(until=3), nulls)
    assert stats.served == ("a", "a", "a", "a", "a", "reuse", "reuse", "reuse")
    assert picture.isfinite().all()
    _, stats = drawn(shallow(), interval(6), nulls)
    assert stats.served == (*["a"] * 5, "reuse", "a", "reuse"), "the half that nobody predicted yet is"


def test_what_is_counted_is_what_is_computed() -> None:
    call = flops.macs(tiny.shape("sd15", **tiny.SHALLOW["sd15"]), tokens=tiny.TOKENS).total
    plain, some, none = counted(), counted(interval(2, 5)), counted(interval(until=0))
    assert (plain.calls, plain.rows, plain.components["unet"].total) == (STEPS, 2 * STEPS, 2 * STEPS * call)
    assert (some.calls, some.rows, some.components["unet"].total) == (STEPS, STEPS + 3, (STEPS + 3) * call)
    assert (none.calls, none.rows, none.components["unet"].total) == (STEPS, STEPS, STEPS * call)
    cached = counted(CACHE, interval(until=4))
    assert (cached.calls, cached.rows) == (STEPS, STEPS + 4)
    assert 6 < cached.components["unet"].total / call < 6.2, "rows 2, 2, 1, 1 in full, and little for the others"


def test_text_is_projected_once_for_all_rows_and_once_for_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, linear, seen = shallow(), torch.nn.Linear.forward, list[int]()
    keys = {module for name, module in pipe.unet.named_modules() if name.endswith("attn2.to_k")}

    def counting(self: torch.nn.Linear, value: Tensor) -> Tensor:
        seen.extend([len(value)] if self in keys else [])
        return linear(self, value)

    monkeypatch.setattr(torch.nn.Linear, "forward", counting)
    drawn(pipe, {"kind": "feature-cache", "rules": [], "cache_text": True}, interval(until=3))
    assert sorted(seen) == [*[1] * len(keys), *[2] * len(keys)]


def test_compiled_it_draws_the_same_by_a_graph_for_each_number_of_rows() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    unet, counter = tiny.unet(SMALLEST), CompileCounterWithBackend("eager")
    expected, _ = drawn(pipes.pipe(unet=copy.deepcopy(unet)), interval(2, 5, outside="difference"))
    pipe = compiled(unet, "wrapped", counter)
    with put(pipe, interval(2, 5, outside="difference")):
        assert torch.allclose(draw(pipe, STEPS), expected, **CLOSE)
        graphs = counter.frame_count
        assert torch.allclose(draw(pipe, STEPS), expected, **CLOSE)
    assert 1 <= graphs <= 3
    assert counter.frame_count == graphs, "none after the first run"
    torch._dynamo.reset()


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GROUPS)
def test_the_table_is_what_diffusers_does(name: str) -> None:
    """What each pipeline of the table takes of the UNet's answer, and how often it calls it, in its own source."""
    source, groups = inspect.getsource(getattr(diffusers, name).__call__), GROUPS[name]
    assert source.count("self.unet(") == 1
    if not groups:
        assert "noise_pred.chunk" not in source
        return
    assert GUIDED in source
    words = {"unconditional": "noise_pred_uncond", PROMPT: "noise_pred_text", "image": "noise_pred_image"}
    assert f"{', '.join(words[group] for group in groups)} = noise_pred.chunk({len(groups)})" in source


def test_pipelines_whose_rows_are_not_known_are_refused() -> None:
    """When it is put on, and where it is on a UNet that such a pipeline calls."""
    parts = {**shallow().components, "requires_safety_checker": False}
    perturbed, text = StableDiffusionPAGPipeline(**parts), diffusers.StableDiffusionPipeline(**parts)
    told = "StableDiffusionPAGPipeline: which rows of its UNet calls do not see the prompt is not known"
    with pytest.raises(ModelError, match=told), put(perturbed, interval(2)):
        pass
    with put(text, interval(2)):
        image = StableDiffusionImg2ImgPipeline(**parts)
        _, rows = with_rows(image, partial(draw, image, 5))
        assert rows == [1, 1, 2], "one that is known draws by it"
        with pytest.raises(ModelError, match="was called outside a generation"):
            text.unet(torch.zeros(2, 4, 8, 8), 1, torch.zeros(2, 16, 16))
        with pytest.raises(ModelError, match=told):
            draw(perturbed)
    assert not hasattr(text.unet, "_diffusers_hook")


def test_guidance_that_a_callback_takes_away_is_told() -> None:
    pipe = pipe_of("text")

    def stop(pipe: Any, step: int, _: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            pipe._guidance_scale = 0.0
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[1]
        return values

    settings = {"callback_on_step_end": stop, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    assert latents("text", **settings).isfinite().all()
    with put(pipe, interval(until=5)), pytest.raises(ModelError, match=r"1 rows, after 2, in 2 groups: something"):
        latents("text", **settings)


FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing left": (
        interval(300, 700, "timestep"),
        ["until: no call is left for guidance; a timestep falls: give less than 'start', 300"],
    ),
    "nothing left, rising": (
        interval(3, 3),
        ["until: no call is left for guidance; a step rises: give more than 'start', 3"],
    ),
    "off the axis": (
        interval(-1, 1.5, "fraction"),
        ["start: a fraction lies between 0 and 1, got -1", "until: a fraction lies between 0 and 1, got 1.5"],
    ),
    "words": (
        interval(outside="zero", by="sigma"),
        [
            "by: must be one of 'timestep', 'log-snr', 'fraction', 'step', got 'sigma'",
            "outside: must be one of 'conditional', 'reuse', 'difference', got 'zero'",
        ],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told_at_their_places(name: str) -> None:
    spec, told = FAULTS[name]
    with pytest.raises(RecipeError) as caught:
        read_patches([spec], "asdm.json")
    assert str(caught.value).splitlines() == [f"asdm.json: patches[0].{each}" for each in told]


CONFLICTS = {
    "guidance is changed twice; leave one of the two out": HALF,
    "a deepcache-package does not know of rows that are left out; leave it or guidance out": {
        "kind": "deepcache-package",
        "interval": 2,
        "steps": 4,
    },
}


@pytest.mark.parametrize("told", CONFLICTS)
def test_what_does_not_go_with_it_is_told_before_anything_slow(
    told: str, shallow_pipeline: Path, tmp_path: Path
) -> None:
    model = {"name": "x", "model": str(shallow_pipeline), "patches": [interval(2), CONFLICTS[told]]}
    said = run(tmp_path, {"verb": "bench", "models": [model], "steps": 4}, "--dry-run")
    assert said.code == 2
    assert told in said.text


# Directories and reports ----------------------------------------------------------------------------------------------


def test_a_model_carries_it_and_every_verb_draws_by_it(
    shallow_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asdm_cli.compare.costs.in_fresh_process", lambda _, work, *given: work(*given))
    model = tmp_path / "model"
    write_patched(find(str(shallow_pipeline)), {}, read_patches([interval(1, 4), CACHE], "test"), model, "test")
    words = "guidance from step 1 until step 4 only; outside: the conditional output alone"
    assert words in asdm("show", model).out.splitlines()
    pipe: Any = asdm_cli.load(str(model), "cpu")
    draw(pipe, STEPS)
    assert live_on(pipe.unet)[0].stats().figures == {"guided_calls": 3}
    asdm_cli.remove(pipe)
    assert not live_on(pipe.unet)
    models = [
        {"name": "plain", "model": str(shallow_pipeline)},
        {"name": "half", "model": str(shallow_pipeline), "patches": [interval(until=4)]},
        {"name": "carried", "model": str(model)},
    ]
    report = run_directory.read(done(tmp_path / "bench", {"verb": "bench", "models": models, **SMALL}))
    assert figures(report, "calls") == {"plain": 8, "half": 8, "carried": 8}
    assert figures(report, "latents") == {"plain": 16, "half": 12, "carried": 11}
    assert figures(report, "guided_calls") == {"half": 4, "carried": 3}
    macs = figures(report, "image_macs_g")
    assert macs["half"] / macs["plain"] == pytest.approx(12 / 16)
    assert macs["carried"] < macs["half"]
    assert "calls with guidance" in (tmp_path / "bench/run/report.html").read_text()
