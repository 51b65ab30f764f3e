"""Plans among what else people do to a pipeline: in either order they draw what the plan draws, or say that they do
not. Never plain pictures without a word."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from diffusers import (
    StableDiffusionPanoramaPipeline,
    StableDiffusionPipeline,
    StableDiffusionSAGPipeline,
)
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from torch import Tensor, nn

import asdm_cli
from asdm_cli.errors import ModelError
from asdm_cli.patches.base import Generation, Trajectory
from asdm_cli.patches.feature_cache import caches_on
from tests.patches import pipes
from tests.patches.pipes import draw
from tests.patches.test_state import hooked

PLAN = {"rules": [{"nodes": "deepcache.1", "schedule": {"mode": "uniform", "interval": 2}}]}
STEPS = 4
CPU = torch.device("cpu")
Do = Callable[[Any], object]


def _model_offload(pipe: Any) -> None:
    """As enable_model_cpu_offload, which needs an accelerator, does anew after every picture."""
    remove_hook_from_module(pipe.unet, recurse=True)
    cpu_offload_with_hook(pipe.unet, CPU)


def _group_offload(pipe: Any) -> None:
    apply_group_offloading(pipe.unet, onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def _group_offload_again(pipe: Any) -> None:
    """As load_lora_weights takes it off and puts it on again."""
    from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading

    _maybe_remove_and_reapply_group_offloading(pipe.unet)


class Low(nn.Module):
    """A LoRA around a projection, as PEFT builds it: a module in the place of another."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base_layer, self.scale = base, 1.0
        generator = torch.Generator().manual_seed(3)
        self.down = nn.Parameter(torch.randn(2, base.in_features, generator=generator) * 0.1)
        self.up = nn.Parameter(torch.randn(base.out_features, 2, generator=generator) * 0.1)

    def forward(self, value: Tensor) -> Tensor:
        return self.base_layer(value) + self.scale * (value @ self.down.T @ self.up.T)


def _lora_by_hand(pipe: Any) -> None:
    for _, module in list(pipe.unet.named_modules()):
        if hasattr(module, "to_q") and isinstance(module.to_q, nn.Linear):
            module.to_q = Low(module.to_q)


def _peft(pipe: Any) -> None:
    if find_spec("peft") is None:
        pytest.skip("peft is not installed")
    from peft import LoraConfig

    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    pipe.unet.add_adapter(config)


WAYS: dict[str, Do] = {
    "model offload": _model_offload,
    "offload of every module": lambda pipe: cpu_offload(pipe.unet, CPU),
    "group offload": _group_offload,
    "layerwise casting": lambda pipe: apply_layerwise_casting(pipe.unet, torch.bfloat16, torch.float32),
    "LoRA by hand": _lora_by_hand,
    "PEFT": _peft,
    "channels last": lambda pipe: pipe.unet.to(memory_format=torch.channels_last),
    "attention slices": lambda pipe: pipe.enable_attention_slicing(),
    "FreeU": lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
}


def same(one: Tensor, other: Tensor) -> bool:
    return bool(torch.isfinite(one).all()) and torch.equal(one, other)


def told(pipe: Any) -> bool:
    """Whether the next picture is refused in words that say what to do."""
    with pytest.raises(ModelError, match=r"asdm_cli\.inherit\(pipe, plan\)"):
        draw(pipe, STEPS)
    return True


@pytest.mark.parametrize("way", list(WAYS))
def test_before_the_plan(way: str) -> None:
    pipe = pipes.pipe()
    WAYS[way](pipe)
    plain = draw(pipe, STEPS)
    handle = asdm_cli.inherit(pipe, PLAN)
    pictures = [draw(pipe, STEPS) for _ in range(2)]
    assert not same(pictures[0], plain), "the plan is alive"
    assert same(pictures[1], pictures[0])
    assert [bool(resting) for resting in handle.stats().reused["unet"]] == [False, True] * (STEPS // 2)
    handle.remove()
    assert same(draw(pipe, STEPS), plain)


@pytest.mark.parametrize("way", list(WAYS))
def test_after_the_plan(way: str) -> None:
    other = pipes.pipe()
    WAYS[way](other)
    plain = draw(other, STEPS)
    with asdm_cli.inherit(other, PLAN):
        planned = draw(other, STEPS)
    pipe = pipes.pipe()
    handle = asdm_cli.inherit(pipe, PLAN)
    WAYS[way](pipe)
    assert same(draw(pipe, STEPS), planned)
    handle.remove()
    assert same(draw(pipe, STEPS), plain)


def test_group_offload_that_is_taken_off_and_put_on_again() -> None:
    """As load_lora_weights does: the plan draws on, or the next picture is refused."""
    pipe = pipes.pipe()
    _group_offload(pipe)
    plain = draw(pipe, STEPS)
    with asdm_cli.inherit(pipe, PLAN):
        planned = draw(pipe, STEPS)
        _group_offload_again(pipe)
        assert same(draw(pipe, STEPS), planned) or told(pipe)
    assert same(draw(pipe, STEPS), plain)


def test_another_unet_is_told_before_anything_is_drawn() -> None:
    pipe, other = pipes.pipe(), pipes.pipe().unet
    before, plain = pipe.unet, draw(pipe, STEPS)
    asdm_cli.inherit(pipe, PLAN)
    pipe.unet = other
    calls: list[int] = []
    other.register_forward_pre_hook(lambda *_: calls.append(1))
    assert told(pipe)
    assert not calls
    asdm_cli.remove(pipe)
    assert same(draw(pipe, STEPS), plain)
    assert hooked(before) == []
    with asdm_cli.inherit(pipe, PLAN):
        assert not same(draw(pipe, STEPS), plain)


def test_hooks_that_somebody_took_off_are_told() -> None:
    pipe = pipes.pipe()
    asdm_cli.inherit(pipe, PLAN)
    del pipe.unet.forward
    assert told(pipe)
    asdm_cli.remove(pipe)


@pytest.fixture
def carried() -> Iterator[tuple[Any, Tensor, Tensor]]:
    """A pipeline with a plan, as `load` gives one; what it draws, and what it would draw without."""
    pipe = pipes.pipe()
    plain = draw(pipe, STEPS)
    asdm_cli.inherit(pipe, PLAN)
    yield pipe, draw(pipe, STEPS), plain
    asdm_cli.remove(pipe)


def test_a_plan_is_taken_off_by_another_pipeline_around_the_unet(carried: tuple[Any, Tensor, Tensor]) -> None:
    pipe, planned, plain = carried
    other = StableDiffusionPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    assert same(draw(pipe, STEPS), planned)
    assert caches_on(other) == caches_on(pipe)
    asdm_cli.remove(other)
    assert type(pipe) is StableDiffusionPipeline, "of the first one too"
    assert same(draw(pipe, STEPS), plain)
    assert same(draw(other, STEPS), plain)
    with asdm_cli.inherit(other, PLAN):
        assert same(draw(other, STEPS), planned)


def test_saving_or_copying_is_refused_in_words(carried: tuple[Any, Tensor, Tensor], tmp_path: Any) -> None:
    pipe, planned, _ = carried
    tries: list[Callable[[], object]] = [
        lambda: copy.deepcopy(pipe),
        lambda: copy.deepcopy(pipe.unet),
        lambda: pickle.dumps(pipe),
        lambda: pickle.dumps(pipe.unet),
        lambda: torch.save(pipe.unet, io.BytesIO()),
        lambda: pipe.save_pretrained(tmp_path / "saved"),
    ]
    for each in tries:
        with pytest.raises(ModelError, match=r"asdm_cli\.remove\(pipe\)"):
            each()
    assert not (tmp_path / "saved").exists()
    assert same(draw(pipe, STEPS), planned)
    asdm_cli.remove(pipe)
    pipe.save_pretrained(tmp_path / "saved")
    assert type(copy.deepcopy(pipe)) is StableDiffusionPipeline


def views(pipe: Any, kind: Any) -> Any:
    """A pipeline of this kind from the parts of another."""
    made = kind(**{name: part for name, part in pipe.components.items() if name != "image_encoder"})
    made.set_progress_bar_config(disable=True)
    return made


SEVERAL = {
    "panorama": (StableDiffusionPanoramaPipeline, {"height": 32, "width": 576, "circular_padding": False}),
    "SAG": (StableDiffusionSAGPipeline, {"height": 32, "width": 32, "sag_scale": 0.75}),
}


@pytest.mark.parametrize("kind", list(SEVERAL))
def test_several_calls_a_step_inherit_each_from_itself(kind: str) -> None:
    """A plan whose every call is a key step draws the plain picture, and the calls of a view are one trajectory."""
    made, settings = SEVERAL[kind]
    pipe = views(pipes.pipe(), made)
    settings = {"prompt": "x", "num_inference_steps": STEPS, "output_type": "latent", **settings}

    def drawn(plan: Any) -> Tensor:
        with asdm_cli.inherit(pipe, plan) as handle:
            images = pipe(generator=torch.manual_seed(0), **settings).images
            calls.append(handle.stats().reused["unet"])
        return torch.as_tensor(images)

    calls: list[Any] = []
    plain = torch.as_tensor(pipe(generator=torch.manual_seed(0), **settings).images)
    always = {"rules": [{"nodes": "up.3", "schedule": {"mode": "uniform", "interval": 1}}]}
    assert same(drawn(always), plain)
    # guidance by attention looks into the mid block, so that is to be computed
    rests = {"nodes": "up.3", "cache": "residual", "schedule": {"mode": "uniform", "interval": 2}}
    every_other = drawn({"rules": [rests]})
    assert [len(each) for each in calls[-1]] == [0, 1] * (STEPS // 2)
    assert not same(every_other, plain)
    assert every_other.isfinite().all()
    # what one view hands on never reaches another: their features differ by much more than two steps' do
    assert (every_other - plain).abs().max() < plain.abs().max()


def test_no_timestep_is_read_from_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a plan counts in steps. What waits for a GPU are these."""
    pipe = pipes.pipe()
    reads: list[str] = []
    with asdm_cli.inherit(pipe, PLAN) as handle:
        step = handle.cache.step

        def watched(arguments: Any, named: Any) -> None:
            with monkeypatch.context() as patch:
                for name in ("item", "__float__", "__bool__", "__int__", "tolist", "cpu", "numpy"):
                    patch.setattr(Tensor, name, lambda *_, name=name, **__: reads.append(name) or 0)
                step(arguments, named)

        monkeypatch.setattr(handle.cache, "step", watched)
        draw(pipe, STEPS)
    assert reads == []


class Counter:
    """A layer that only counts its generations."""

    made = 0

    def begin(self, trajectory: Trajectory) -> int:
        assert trajectory.calls
        self.made += 1
        return self.made


def test_what_is_told_of_timesteps() -> None:
    """Elements of a list by where they lie, whatever their value: two calls at one are two streams. Others are counted
    only."""
    times = torch.tensor([9, 5, 5, 1])
    once = Generation(Counter(), 4)  # type: ignore[arg-type]
    assert [once.next(time) for time in times] == [1] * 4
    with pytest.raises(ModelError, match="called at an earlier timestep again"):
        once.next(times[2])
    views = Generation(Counter(), 4)  # type: ignore[arg-type]
    assert [views.next(time) for each in times for time in (each, each.expand(2))] == [1, 2] * 4
    late = Generation(Counter(), 4)  # type: ignore[arg-type]
    assert late.next(times[0]) == late.next(times[1]) == 1
    with pytest.raises(ModelError, match=r"again at a timestep \(call 2\)"):
        late.next(times[1])
    loose = Generation(Counter(), 6)  # type: ignore[arg-type]
    for time in (5, 5.0, torch.tensor(5), torch.tensor([5, 5]), torch.full((2,), 5), torch.full((2,), 5)):
        assert loose.next(time) == 1
    with pytest.raises(ModelError, match="called 7 times where 6 calls were announced"):
        loose.next(5)


RESIDUAL = {"rules": [{"nodes": "*.attn", "cache": "residual", "schedule": {"mode": "uniform", "interval": 2}}]}


class LowConvolution(nn.Module):
    """The same around a convolution of one pixel."""

    def __init__(self, base: nn.Conv2d):
        super().__init__()
        self.base_layer = base
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.change = nn.Conv2d(base.in_channels, base.out_channels, 1)

    def forward(self, value: Tensor) -> Tensor:
        return self.base_layer(value) + self.change(value)


def _low(pipe: Any) -> dict[str, nn.Module]:
    """LoRAs around the last projection of every transformer, in which a residual branch ends."""
    places = {name: each for name, each in pipe.unet.named_modules() if name.endswith("proj_out")}
    for name, each in places.items():
        pipe.unet.set_submodule(name, LowConvolution(each))
    return places


def test_a_branch_ends_where_a_lora_came_or_went() -> None:
    """PEFT puts modules in the places of those that hand on."""
    other = pipes.pipe()
    _low(other)
    with asdm_cli.inherit(other, RESIDUAL):
        wanted = draw(other, STEPS)
    pipe = pipes.pipe()
    handle = asdm_cli.inherit(pipe, RESIDUAL)
    before = draw(pipe, STEPS)
    places = _low(pipe)
    assert same(draw(pipe, STEPS), wanted)
    assert not same(wanted, before)
    for name, each in places.items():
        pipe.unet.set_submodule(name, each)
    assert same(draw(pipe, STEPS), before)
    handle.remove()
    assert hooked(pipe.unet) == []


@pytest.mark.parametrize(
    "way", [copy.copy, lambda pipe: views(pipe, type(pipe)), lambda pipe: type(pipe).from_pipe(pipe)]
)
def test_a_copy_draws_plain_when_the_plan_is_gone(way: Callable[[Any], Any], tmp_path: Any) -> None:
    pipe = pipes.pipe()
    plain = draw(pipe, STEPS)
    with asdm_cli.inherit(pipe, PLAN):
        other = way(pipe)
        other.set_progress_bar_config(disable=True)
        assert not same(draw(other, STEPS), plain)
    assert same(draw(other, STEPS), plain)
    with asdm_cli.inherit(pipe, PLAN):
        another = way(pipe)
    another.save_pretrained(tmp_path / "saved")
    assert type(another).__mro__[0] is StableDiffusionPipeline


class Own(StableDiffusionPipeline):
    """A pipeline of one's own, whose timesteps are no elements of the scheduler's list."""

    @torch.no_grad()
    def __call__(self, given: Callable[[Tensor], Any]) -> Tensor:
        self.scheduler.set_timesteps(STEPS)
        latents, text = torch.randn(1, 4, 8, 8, generator=torch.manual_seed(0)), torch.ones(1, 16, 16)
        for timestep in self.scheduler.timesteps:
            predicted = self.unet(latents, given(timestep), text).sample
            latents = self.scheduler.step(predicted, timestep, latents).prev_sample
        return latents


@pytest.mark.parametrize("given", [lambda t: t, float, int, lambda t: t[None], lambda t: t.to(torch.float32)])
def test_a_pipeline_of_ones_own_inherits_whatever_its_timesteps_are(given: Callable[[Tensor], Any]) -> None:
    pipe = pipes.pipe()
    own = views(pipe, Own)
    plain = own(given)
    with asdm_cli.inherit(own, PLAN):
        wanted = own(given)
    with asdm_cli.inherit(pipe, PLAN) as handle:
        for _ in range(2):
            assert same(own(given), wanted)
            assert [len(each) for each in handle.stats().reused["unet"]] == [0, 1] * (STEPS // 2)
    assert not same(wanted, plain)
    assert same(own(given), plain)
