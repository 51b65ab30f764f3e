"""What is wrong with training data: counted by kind, with a few examples in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 20


@dataclass
class Faults:
    """`counts` by kind; `examples` are the first twenty, each with its shard and sample."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, kind: str, where: str, what: str = "") -> None:
        self.counts[kind] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{where}: {kind}{f' ({what})' if what else ''}")

    def merge(self, other: Faults) -> None:
        self.counts.update(other.counts)
        self.examples = (self.examples + other.examples)[:EXAMPLES]

    def total(self) -> int:
        return self.counts.total()

    def summary(self) -> str:
        """Every kind with its number, most frequent first."""
        return ", ".join(f"{kind}: {count}" for kind, count in self.counts.most_common())

    def listed(self) -> str:
        """The examples, one a line, and how many more there are."""
        more = self.total() - len(self.examples)
        return "\n".join([*self.examples, *([f"... and {more} more"] if more else [])])

    def to_json(self) -> dict[str, Any]:
        return {"faults": dict(self.counts), "examples": self.examples}

    @classmethod
    def from_json(cls, about: dict[str, Any]) -> Faults:
        """Raises KeyError, TypeError or AttributeError for what `to_json` does not write."""
        counts, examples = about["faults"], about["examples"]
        if not all(type(count) is int for count in counts.values()) or not all(type(each) is str for each in examples):
            raise TypeError("kinds with numbers, and examples in words, are expected")
        return cls(Counter(counts), list(examples))
