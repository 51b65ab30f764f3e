"""Several UNets in the place of one: a module that a pipeline calls as its `unet`, and that calls whose turn it is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from inspect import ismethod
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from asdm_cli.errors import ModelError
from asdm_cli.inheritance.course import Nodes, Resting
from asdm_cli.inheritance.engine import COPIED, Engine
from asdm_cli.recipe.patches import NULLS, Idle, Rules, Switching
from asdm_cli.switching.fit import check, check_rules, fitted
from asdm_cli.switching.run import Pending, Run

FOR_ALL = frozenset(
    {
        "enable_freeu",
        "disable_freeu",
        "fuse_qkv_projections",
        "unfuse_qkv_projections",
        "set_attn_processor",
        "set_default_attn_processor",
        "set_attention_slice",
    }
)
"""Methods by which pipelines and people change how a UNet computes: they go to every one. Others are refused."""


class Current(threading.local):
    """Of each thread: the generation under way. Threads that share a UNet do not meet here."""

    def __init__(self) -> None:
        self.run: Run | Pending | None = None

    def __reduce__(self) -> Any:
        raise ModelError(COPIED)


class SwitchedUNet(nn.Module):
    """UNets by name, and the rules by which one of them, or a null model, answers each call of a generation.

    What a pipeline asks of a UNet (config, dtype, add_embedding, ...) the first one answers. A UNet may stand under
    several names. `plans` are what each inherits while it serves. With `idle="cpu"` those that do not serve live in
    the CPU's memory. Raises ModelError with all that does not fit.
    """

    def __init__(
        self,
        unets: Mapping[str, UNet2DConditionModel],
        rules: Switching,
        plans: Mapping[str, Rules | Nodes] | None = None,
        idle: Idle = "stay",
    ):
        super().__init__()
        check(unets, rules, plans or {})
        self.names = tuple(unets)
        self.members = nn.ModuleList(unets.values())  # by place: a name may hold what a module's name may not
        self.rules = rules
        self.idle = idle
        self.engines: dict[str, Engine] = {}
        self.last_served: tuple[str, ...] = ()
        self.last_steps: dict[str, list[Resting]] = {}
        self.last_cache_bytes = 0
        self.current = Current()
        self._known: dict[tuple[str, str], Nodes] = {}
        self._moving = threading.RLock()
        self._here = self.names[0]
        self._home: torch.device = self.members[0].device
        self.inherit(plans or {})
        if idle == "cpu":
            for unet in self._idle():
                unet.to("cpu")

    @property
    def unets(self) -> dict[str, UNet2DConditionModel]:
        return dict(zip(self.names, self.members, strict=True))

    @property
    def device(self) -> torch.device:
        """Where calls are answered."""
        return self._home if self.idle == "cpu" else self.members[0].device

    def inherit(self, plans: Mapping[str, Rules | Nodes]) -> None:
        """Put a plan in force on each of these UNets. Raises ModelError, and changes nothing, where one cannot be."""
        nodes = fitted(self.unets, plans, self._known)
        if taken := [name for name in nodes if name in self.engines]:
            way = "take the earlier plan off: asdm_cli.remove(pipe)"
            raise ModelError(f"UNet {', '.join(map(repr, taken))} inherits already; {way}")
        made: dict[nn.Module, Engine] = {}
        try:
            for name, each in nodes.items():
                unet = self.unets[name]
                made[unet] = made.get(unet) or Engine(unet, each)
        except BaseException:
            for engine in made.values():
                engine.remove()
            raise
        self.engines |= {name: made[self.unets[name]] for name in nodes}

    def disinherit(self) -> None:
        """Every UNet without its plan. May be called again."""
        for engine in self.engines.values():
            engine.remove()
        self.engines.clear()

    @contextmanager
    def ruled(self, rules: Switching) -> Iterator[None]:
        """Other rules for the generations that begin inside. Raises ModelError for names that are not known."""
        check_rules(self.names, rules)
        before, self.rules = self.rules, rules
        try:
            yield
        finally:
            self.rules = before

    @contextmanager
    def generation(self, calls: int | Callable[[], int], scheduler: Any = None) -> Iterator[None]:
        """Everything that the UNet is called for inside is one generation of so many `calls`.

        A function is asked at the first UNet call. The scheduler, with its timesteps set, says where the calls lie;
        rules by `step` and `fraction` need none. Nothing is left behind, whatever happens.
        """
        before = self.current.run
        self.current.run = Pending(calls, scheduler)
        try:
            yield
        finally:
            done, self.current.run = self.current.run, before
            if isinstance(done, Run):
                done.close()
                self.last_served, self.last_steps = tuple(done.served), done.rested
                self.last_cache_bytes = done.cache_bytes

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        *,
        return_dict: bool = True,
        **named: Any,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Like UNet2DConditionModel's. Raises ModelError outside a generation: nobody knows whose turn it is."""
        run, name = self._next(sample, timestep)
        if name in NULLS:
            prediction = run.null(name)
        else:
            with self.present(name) as unet:
                prediction = unet(sample, timestep, encoder_hidden_states, return_dict=False, **named)[0]
            run.keep(prediction)
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)

    @torch.compiler.disable
    def _next(self, sample: Tensor, timestep: Tensor | float) -> tuple[Run, str]:
        run = self.current.run
        if run is None:
            raise ModelError(
                "several UNets were called outside a generation, so nobody knows whose turn it is; draw with the "
                "pipeline that switches (asdm_cli.switch), or call inside `with unet.generation(calls, scheduler):`"
            )
        if isinstance(run, Pending):
            run = self.current.run = run.start(self.rules, self.engines, timestep)
        return run, run.next(sample, timestep)

    @contextmanager
    def present(self, name: str) -> Iterator[UNet2DConditionModel]:
        """The UNet, where calls are answered. While it answers there, no other thread moves it away."""
        unet = self.unets[name]
        if self.idle == "stay" or self._home.type == "cpu":
            yield unet
            return
        with self._moving:
            if unet is not self.unets[self._here]:
                self.unets[self._here].to("cpu")
                unet.to(self._home)
            self._here = name
            yield unet

    def _idle(self) -> list[nn.Module]:
        return [unet for unet in dict.fromkeys(self.members) if unet is not self.unets[self._here]]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SwitchedUNet:
        """How `to()`, `half()` and their like reach the UNets: one by one, so that idle ones take no room at once."""
        here = self.unets[self._here]
        here._apply(fn, recurse)
        self._home = here.device
        for unet in self._idle():
            unet._apply(fn, recurse)
            if self.idle == "cpu":
                unet.to("cpu")
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "members" not in self.__dict__.get("_modules", {}):
                raise
        found = getattr(self.members[0], name)
        return partial(self._each, name) if ismethod(found) else found

    def _each(self, method: str, *args: Any, **named: Any) -> None:
        if method not in FOR_ALL:
            raise ModelError(f"{method}() is about one UNet; call it on each of `.unets`, or before you switch")
        for unet in dict.fromkeys(self.members):
            getattr(unet, method)(*args, **named)
