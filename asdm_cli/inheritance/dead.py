"""The value of a node that nobody reads: whatever is done with it costs nothing and gives it again.

A block's own forward goes through the motions (concatenate, add, reshape) around modules that were not computed.
This tensor takes part in them and absorbs the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


class Dead(torch.Tensor):
    """Absorbs every operation but those that ask what it is: four dimensions of nothing."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.__name__ == "__get__" or func in _SHOWING:
            return super().__torch_function__(func, types, args, kwargs or {})
        return DEAD


_QUESTIONS = [name for name in dir(torch.Tensor) if name.removeprefix("_").startswith("is_")]
_SHOWING = {
    method
    for name in ("__repr__", "__format__", "dim", "size", "stride", "storage_offset", *_QUESTIONS)
    if callable(method := getattr(torch.Tensor, name))
}
"""torch.compile asks most of these of every tensor that it meets."""
DEAD = torch.empty(0, 0, 0, 0).as_subclass(Dead)
"""The only one."""
