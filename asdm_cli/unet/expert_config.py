"""What a UNet config says of expert convolutions: module name -> spec, and how names follow surgery. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from asdm_cli.errors import ModelError
from asdm_cli.experts.spec import Spec
from asdm_cli.unet.blocks import Config

EXPERTS = "experts"
"""The key of a config; module name -> the fields of a Spec."""
STOCK, CLASS = "UNet2DConditionModel", "ExpertUNet"


def specs(config: Config) -> dict[str, Spec]:
    """Those of a config; ModelError for entries that are none."""
    held = config.get(EXPERTS) or {}
    try:
        found = {str(name): Spec(**entry) for name, entry in dict(held).items()}
    except (TypeError, ValueError) as error:
        raise ModelError(f"UNet config: {EXPERTS} cannot be read ({error}); write the model again") from None
    for name, spec in found.items():
        if type(spec.experts) is not int or spec.experts < 1:
            raise ModelError(f"UNet config: {EXPERTS}: {name} has {spec.experts!r} experts; write the model again")
    return found


def with_specs(config: Config, wanted: Mapping[str, object]) -> Config:
    """The config with these experts (specs, or entries of a config) and no others; of the class that this asks for."""
    rest = {key: value for key, value in config.items() if key not in (EXPERTS, "_class_name")}
    if not wanted:
        return {**rest, "_class_name": STOCK}
    entries = {name: vars(spec) if isinstance(spec, Spec) else spec for name, spec in wanted.items()}
    return {**rest, "_class_name": CLASS, EXPERTS: entries}


def carried(config: Config, sources: Iterable[tuple[str, Config, str]]) -> Config:
    """The config of a result with the experts that came along: `sources` are its unit modules, each with the config
    that it comes from and its name there."""
    sources = list(sources)
    if not any(EXPERTS in each for each in (config, *(donor for _, donor, _ in sources))):
        return config
    found: dict[str, object] = {}
    for new, donor, old in sources:
        for name, entry in (donor.get(EXPERTS) or {}).items():
            if name.startswith(f"{old}."):
                found[new + name.removeprefix(old)] = entry
    return with_specs(config, found)
