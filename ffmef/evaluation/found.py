"""What a benchmark folder or table holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Pair:
    """Two sources of one scene, in the toolkits' order (infrared-visible: visible first), or a bracket of more."""

    name: str
    a: Path
    b: Path
    more: tuple[Path, ...] = ()

    @property
    def frames(self) -> tuple[Path, ...]:
        """All sources."""
        return (self.a, self.b, *self.more)


@dataclass(frozen=True)
class Failure:
    """What could not be scored and why; ``method`` is empty where a pair itself is broken."""

    pair: str
    method: str
    reason: str


@dataclass
class Found:
    """The pairs of a benchmark, what is wrong with others, and what readers of the scores must know."""

    pairs: list[Pair] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    guessed: list[str] = field(default_factory=list)  # scenes whose pictures name no role
    fused: dict[str, dict[str, Path]] = field(default_factory=dict)  # by method and pair; only a table names them
