"""What an engine is built from, and what came of it; both travel between processes as JSON."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sana_runtime.signature import Profile

from sana_export.engines.library import Library

__all__ = ["BuildProgress", "BuiltEngine", "EngineJob"]


@dataclass(frozen=True)
class EngineJob:
    """One engine to build."""

    part: str
    graph: Path
    output: Path  # the engine's file
    profiles: dict[str, Profile]
    capabilities: tuple[int, ...]
    library: Library = Library.RTX
    plugin: bool = True
    streams: bool = False  # whether weights may stay off the card
    fused_mix_ffn: bool = False  # whether, besides the attention, the middle of the Mix-FFN is a plugin

    def to_json(self) -> str:
        """One line of text."""
        return json.dumps({**asdict(self), "graph": str(self.graph), "output": str(self.output)})

    @classmethod
    def from_json(cls, line: str) -> "EngineJob":
        """Read what `to_json` wrote."""
        fields: dict[str, Any] = json.loads(line)
        fields |= {name: Path(fields[name]) for name in ("graph", "output")}
        fields |= {"capabilities": tuple(fields["capabilities"]), "library": Library(fields["library"])}
        return cls(**fields)


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is."""

    part: str
    fraction: float
    seconds_left: float | None  # None while nobody can know
    message: str


@dataclass(frozen=True)
class BuiltEngine:
    """An engine on disk, and what it took."""

    path: Path
    bytes: int
    seconds: float
    cpu_seconds: float
    peak_memory: int  # bytes of the process that built it; 0 where the system does not say
