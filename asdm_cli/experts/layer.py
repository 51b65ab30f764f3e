"""The drop-in for a Conv2d: a bank of experts and the router that mixes them for every example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from asdm_cli.experts.choice import choose
from asdm_cli.experts.kept import Kept
from asdm_cli.experts.mixing import STRATEGIES, Settings, one_kernel, shared
from asdm_cli.experts.router import SUM_TO_ONE, Clock, Router
from asdm_cli.experts.spec import Spec


class ExpertConv2d(nn.Module):  # type: ignore[misc]
    """CondConv [arXiv:1904.04971] in the place of a Conv2d without groups.

    Its tensors have a Conv2d's names, with the experts' kernels one after the other in `weight` [K O, C, h, w] and
    their biases in `bias` [K O]: what expects a Conv2d's shapes refuses them.
    """

    def __init__(self, like: nn.Conv2d, spec: Spec, time_width: int, clock: Clock):
        super().__init__()
        assert like.groups == 1, "resnets have no others"
        self.spec, self.clock = spec, clock
        self.in_channels, self.out_channels, self.kernel_size = like.in_channels, like.out_channels, like.kernel_size
        self.settings: Settings = {"stride": like.stride, "padding": like.padding, "dilation": like.dilation}
        self.weight = nn.Parameter(like.weight.detach().repeat(spec.experts, 1, 1, 1))
        self.bias = None if like.bias is None else nn.Parameter(like.bias.detach().repeat(spec.experts))
        channels = like.in_channels if spec.router in ("features", "both") else 0
        self.router = Router(channels, time_width if spec.router in ("time", "both") else 0, spec.experts, spec.weights)
        self.anchored = spec.weights in SUM_TO_ONE
        self.kept = Kept()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, O, H', W']; a row's answer does not depend on the other rows."""
        keeping = self.spec.router == "time" and not self.training and not torch.is_grad_enabled()
        moment = self.clock.moment if keeping else None
        if moment is not None:
            return functional.conv2d(x, *self._kernel_at(moment, x), **self.settings)
        routing = self.router(x, self.clock)
        bank = (self.weight, self.bias)
        if self._alike(routing):
            return shared(x, routing, *bank, self.anchored, self.settings)
        strategy = choose(x, routing, *bank, self.anchored, self.settings)
        return STRATEGIES[strategy](x, routing, *bank, self.anchored, self.settings)

    def _kernel_at(self, moment: float, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mixed once for a timestep, not once a call, where there is room to keep it."""
        found = self.kept.get(moment)
        if found is None:
            routing = self.router(x, self.clock)
            found = one_kernel(routing, self.weight, self.bias, self.anchored)
            self.kept.put(moment, found)
        return found

    def train(self, mode: bool = True) -> ExpertConv2d:
        """As of any module; kept kernels are forgotten, as weights may have changed."""
        self.kept.clear()
        super().train(mode)
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.kept.clear()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.kept.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def _alike(self, routing: Tensor) -> bool:
        """Whether one kernel serves all rows: known of a router that asks for the time alone, or has no choice; else
        looked at where looking is free and no gradient has to find its row."""
        if len(routing) == 1 or (self.spec.router == "time" and self.clock.uniform):
            return True
        if self.anchored and self.spec.experts == 1:
            return True
        looking = routing.device.type == "cpu" and not torch.compiler.is_compiling()
        return looking and not routing.requires_grad and bool((routing == routing[:1]).all())

    def extra_repr(self) -> str:
        """As Conv2d, and its experts."""
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, {self.spec}"
