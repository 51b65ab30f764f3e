"""Feature inheritance without training: a plan says which nodes are reused from earlier calls, and a cache on the UNet
does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from asdm_cli.errors import ModelError
from asdm_cli.patches.base import MARK, Handle, Layer, Load, Patch, Stats, check_pipeline, in_force, live_on, stats_of
from asdm_cli.patches.feature_cache.hooks import FeatureCache, cache_on, resolve
from asdm_cli.patches.feature_cache.plan import ResolvedPlan
from asdm_cli.recipe.patches import CachePlan, FeatureCacheSpec

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from torch import nn

Plan = CachePlan | ResolvedPlan


class FeatureCachePatch(Patch[FeatureCacheSpec]):
    layer = Layer.CACHE

    def check(self, configs: Mapping[str, Mapping[str, Any]], others: Sequence[Patch[Any]]) -> list[str]:
        faults = [
            f"{name!r} has two plans; leave one out"
            for other in others
            if isinstance(other, FeatureCachePatch)
            for name in set(self._names(configs)) & set(other._names(configs))
        ]
        if self.spec.unet is not None and self.spec.unet not in configs:
            return [f"no UNet is called {self.spec.unet!r}; there are {', '.join(configs)}"]
        for name in self._names(configs):
            try:
                resolve(self.spec, dict(configs[name]))
            except ModelError as error:
                faults.append(str(error) if len(configs) == 1 else f"UNet {name!r}: {error}")
        return faults

    def _names(self, configs: Mapping[str, Any]) -> list[str]:
        return [self.spec.unet] if self.spec.unet is not None else list(configs)

    @contextmanager
    def apply(self, pipe: Any, load: Load) -> Iterator[Callable[[], Stats]]:  # noqa: ARG002 - every patch's signature
        with inherit(pipe, self.spec, self.spec.unet) as handle:
            yield handle.stats


patch = FeatureCachePatch


class CacheHandle(Handle):
    """Plans that are in force on the UNets of `pipe`."""

    def __init__(self, pipe: DiffusionPipeline, caches: Mapping[str, FeatureCache]):
        super().__init__(pipe, list(dict.fromkeys(caches.values())))
        self.caches = dict(caches)

    @property
    def cache(self) -> FeatureCache:
        """Of the only UNet, or the first."""
        return next(iter(self.caches.values()))

    def stats(self) -> Stats:
        return stats_of(self.pipe)


def inherit(pipe: DiffusionPipeline, plan: Plan, unet: str | None = None) -> CacheHandle:
    """A plan for every UNet of a pipeline, or for one. Raises ModelError, and changes nothing, where it does not fit
    one, or where one has a plan already."""
    check_pipeline(pipe)
    unets = unets_of(pipe)
    rules = plan.plan if isinstance(plan, ResolvedPlan) and len(unets) > 1 else plan
    return put_on(pipe, dict.fromkeys(unets if unet is None else [unet], rules))


def put_on(pipe: Any, plans: Mapping[str, Plan]) -> CacheHandle:
    """A plan on each of these UNets of a pipeline."""
    unets = unets_of(pipe)
    if taken := [name for name in plans if cache_on(unets[name])]:
        who = "this UNet" if len(unets) == 1 else f"UNet {', '.join(map(repr, taken))}"
        raise ModelError(f"{who} inherits already; take the earlier plan off: asdm_cli.remove(pipe)")
    made: dict[nn.Module, FeatureCache] = {}
    try:
        for name, plan in plans.items():
            if unets[name] not in made:
                made[unets[name]] = FeatureCache(unets[name], plan)
                in_force(pipe, made[unets[name]])
    except BaseException:
        for cache in made.values():
            cache.remove()
        raise
    return CacheHandle(pipe, {name: made[unets[name]] for name in plans})


def remove(pipe: Any) -> None:
    """Take off whatever is in force on the UNets, also on one that was replaced meanwhile; UNets keep their places."""
    for live in [*getattr(type(pipe), MARK, ()), *caches_on(pipe).values()]:
        if not live.unets:
            live.remove()


def unets_of(pipe: Any) -> dict[str, nn.Module]:
    """The UNets of a pipeline by name: `unet` where it is the only one."""
    several = [dict(live.unets) for live in live_on(pipe.unet) if live.unets]
    return several[-1] if several else {"unet": pipe.unet}


def caches_on(pipe: Any) -> dict[str, FeatureCache]:
    """The cache of every UNet that has one, by the UNet's name."""
    found = {name: cache_on(unet) for name, unet in unets_of(pipe).items()} if getattr(pipe, "unet", None) else {}
    return {name: cache for name, cache in found.items() if cache is not None}
