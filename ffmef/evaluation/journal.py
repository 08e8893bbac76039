"""Scores on disk, one line each, so that an interrupted run continues where it stopped."""

from __future__ import annotations

import json
from pathlib import Path


class Journal:
    """Values already known, by pair, method and the key of the files that decided them."""

    def __init__(self, path: Path):
        self.path = path
        self._known: dict[tuple[str, str, str], dict[str, float | None]] = {}
        self._notes: dict[tuple[str, str, str], str] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                    place = record["pair"], record["method"], record["key"]
                    self._known.setdefault(place, {}).update(record["values"])
                    if record.get("note"):
                        self._notes[place] = record["note"]
                except (ValueError, KeyError, TypeError):
                    continue  # a line cut off by an interruption; its score is computed again

    def values(self, pair: str, method: str, key: str) -> dict[str, float | None]:
        """Return the known values of one fused picture."""
        return self._known.get((pair, method, key), {})

    def note(self, pair: str, method: str, key: str) -> str:
        """Return what readers must know about how a fused picture was scored; empty if nothing."""
        return self._notes.get((pair, method, key), "")

    def add(self, pair: str, method: str, key: str, values: dict[str, float | None], note: str = "") -> None:
        """Keep values, on disk before the call returns."""
        self._known.setdefault((pair, method, key), {}).update(values)
        if note:
            self._notes[pair, method, key] = note
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"pair": pair, "method": method, "key": key, "values": values, "note": note})
        cut_off = self.path.exists() and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if cut_off else "") + line + "\n")
