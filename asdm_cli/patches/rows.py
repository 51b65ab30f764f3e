"""A UNet call on part of its rows: which arguments have a row for each latent, and which have none."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor

from asdm_cli.errors import ModelError

NAMES = tuple(signature(UNet2DConditionModel.forward).parameters)[1:]
"""Of a UNet's arguments, in their order."""
FOR_ALL = "ip_adapter_masks"
"""Of the arguments to attention processors, the only tensors known: each row takes all of them."""


Views = dict[str, tuple[Tensor, slice, Tensor]]
"""Argument -> what was given last, the part that was taken of it, and the view."""


def take_rows(
    arguments: tuple[Any, ...], named: Mapping[str, Any], part: slice, views: Views | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call of a UNet2DConditionModel, on these of its rows: views of whatever has them, wherever it lies.

    What has one row or none serves every one, as it is. Of the same tensor as before there is the same view: who keeps
    what was made of a text knows it by that. Raises ModelError for an argument whose rows are not known.
    """
    views = {} if views is None else views
    of = dict(zip(NAMES, arguments, strict=False)) | dict(named)
    count = len(of["sample"])

    def taken(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            if value.ndim == 0 or len(value) == 1:
                return value
            if len(value) != count:
                raise ModelError(f"a UNet call has {count} rows and its {name} has {len(value)}; draw this in full")
            before = views.get(name)
            if before is None or before[0] is not value or before[1] != part:
                before = views[name] = (value, part, value[part])
            return before[2]
        if isinstance(value, Mapping):
            return {key: taken(each, f"{name}.{key}") for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(taken(each, f"{name}[{index}]") for index, each in enumerate(value))
        return value

    for key, value in (of.get("cross_attention_kwargs") or {}).items():
        if key != FOR_ALL and _holds_tensor(value):
            what = f"cross_attention_kwargs.{key}: nobody knows which rows of a UNet call it is for"
            raise ModelError(f"{what}; draw without it, or in full")
    found = {name: value if name == "cross_attention_kwargs" else taken(value, name) for name, value in of.items()}
    given = NAMES[: len(arguments)]
    return tuple(found[name] for name in given), {name: found[name] for name in found if name not in given}


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_tensor(each) for each in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_tensor(each) for each in value)
    return isinstance(value, Tensor)
