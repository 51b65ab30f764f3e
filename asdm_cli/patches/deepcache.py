"""The DeepCache package itself, as its users set it up: the peer that a feature cache is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from asdm_cli.patches.base import Configs, Layer, Load, Patch, Stats
from asdm_cli.recipe.patches import DeepCacheSpec


class DeepCachePatch(Patch[DeepCacheSpec]):
    layer = Layer.MODULE
    reentrant = False
    """It keeps what it remembers of a picture in the UNet."""

    def check(self, configs: Configs, others: Sequence[Patch[Any]]) -> list[str]:
        faults = []
        if find_spec("DeepCache") is None:
            faults.append("the DeepCache package is not installed; pip install 'asdm-cli[peers]', or leave it out")
        if len(configs) > 1:
            faults.append("the DeepCache package works on one UNet, and this model has several; leave it out")
        if any(config.get("mid_block_type", "") is None for config in configs.values()):
            faults.append("the DeepCache package needs a mid block, and this UNet has none; leave it out")
        if any(other.layer == Layer.CACHE for other in others):
            faults.append("the DeepCache package is a cache of its own; leave it or the plan out")
        return faults

    @contextmanager
    def apply(self, pipe: Any, load: Load) -> Iterator[Callable[[], Stats]]:  # noqa: ARG002 - every patch's signature
        from DeepCache import DeepCacheSDHelper

        # it finds its step among the timesteps of the scheduler that it was given, whichever scheduler draws
        pipe.scheduler.set_timesteps(self.spec.steps)
        own = [module for module in pipe.unet.modules() if "forward" not in vars(module)]
        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=self.spec.interval, cache_branch_id=self.spec.branch)
        helper.enable()
        try:
            yield Stats
        finally:
            helper.disable()
            for module in own:  # in which it leaves their class's method behind
                vars(module).pop("forward", None)


patch = DeepCachePatch
