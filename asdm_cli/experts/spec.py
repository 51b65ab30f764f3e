"""What a UNet config says of its expert convolutions. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from asdm_cli.errors import ModelError
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.stock import EXPERTS


@dataclass(frozen=True)
class Spec:
    """How one convolution is made of experts: how many, what its router looks at, how it weighs them.

    The words are keys of `router.LOOKS` and `router.ROUTINGS`.
    """

    experts: int
    router: str
    weights: str


def specs(config: Config) -> dict[str, Spec]:
    """Module name -> spec; ModelError for entries that are none."""
    held = config.get(EXPERTS) or {}
    try:
        found = {str(name): Spec(**entry) for name, entry in dict(held).items()}
    except (TypeError, ValueError) as error:
        raise ModelError(f"UNet config: {EXPERTS} cannot be read ({error}); write the model again") from None
    for name, spec in found.items():
        if type(spec.experts) is not int or spec.experts < 1:
            raise ModelError(f"UNet config: {EXPERTS}: {name} has {spec.experts!r} experts; write the model again")
    return found
