"""What of a student does not learn. No torch: works on the names of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from asdm_cli.errors import ModelError
from asdm_cli.unet.addresses import Anatomy

FROM = "from "


def frozen_keys(
    anatomy: Anatomy, keys: Iterable[str], patterns: str | Sequence[str], taken: Mapping[str, Sequence[str]]
) -> frozenset[str]:
    """The tensors that patterns name: addresses, modules outside the blocks, or `from DONOR`.

    `taken` says what an assembled model has of each donor, in the same words. Raises ModelError for a pattern
    that names nothing.
    """
    keys = list(keys)
    wanted = [patterns] if isinstance(patterns, str) else patterns
    words = [word for pattern in wanted for word in _resolved(pattern, taken)]
    outside = {key.split(".")[0] for key in keys if anatomy.address_of_key(key) is None}
    addresses = [word for word in words if word not in outside]
    try:
        named = anatomy.match(addresses)
    except ModelError as error:
        raise ModelError(f"{error}; outside the blocks are {', '.join(sorted(outside))}") from None
    inside = frozenset().union(*(anatomy.inside(address) for address in named))
    return frozenset(key for key in keys if anatomy.address_of_key(key) in inside or key.split(".")[0] in words)


def _resolved(pattern: str, taken: Mapping[str, Sequence[str]]) -> Sequence[str]:
    if not pattern.startswith(FROM):
        return [pattern]
    donor = pattern.removeprefix(FROM).strip()
    if donor in taken:
        return taken[donor]
    known = f"its donors are {', '.join(taken)}" if taken else "it was not made by asdm assemble"
    raise ModelError(f"{pattern!r}: the student has nothing from {donor!r}; {known}")
