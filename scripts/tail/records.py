"""The measured cells on disk: one record each, and one curve each from which plots are drawn again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Record = dict[str, Any]
Curve = list[float | None]

_DECADES = 4  # of the curve: down to one request in ten thousand
_POINTS_PER_DECADE = 25
SHARES = 10.0 ** -np.linspace(0, _DECADES, _DECADES * _POINTS_PER_DECADE + 1)


def curve(latency_s: npt.NDArray[np.float64]) -> Curve:
    """Return the latencies in ms that a share of `SHARES` of all requests reaches or passes; None where it failed."""
    ms = np.sort(np.where(np.isnan(latency_s), np.inf, 1e3 * latency_s))[::-1]
    ranks = np.clip(np.ceil(SHARES * len(ms)).astype(int) - 1, 0, len(ms) - 1)
    return [round(value, 3) if math.isfinite(value) else None for value in ms[ranks].tolist()]


class Records:
    """The records in a folder, each written as soon as it is measured.

    Args:
        folder: where ``tail_latency.json`` and ``tail_curves.json`` are, or will be.
    """

    def __init__(self, folder: Path) -> None:
        self._records_path = folder / "tail_latency.json"
        self._curves_path = folder / "tail_curves.json"
        self.records: list[Record] = _read(self._records_path, [])
        self.curves: dict[str, Curve] = _read(self._curves_path, {"curves_ms": {}})["curves_ms"]

    def have(self, policy: str, scenario: str, repeat: int) -> bool:
        """Tell whether this cell was measured."""
        return any(
            (record["policy"], record["scenario"], record["repeat"]) == (policy, scenario, repeat)
            for record in self.records
        )

    def add(self, record: Record, curve_ms: Curve) -> None:
        """Keep a cell's record and curve."""
        self.records.append(record)
        self.curves[key(record)] = curve_ms
        _write(self._curves_path, {"shares": SHARES.round(6).tolist(), "curves_ms": self.curves})
        _write(self._records_path, self.records)


def key(record: Record) -> str:
    """Return the name of a record's curve."""
    return f"{record['scenario']}/{record['policy']}/{record['repeat']}"


def _read(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else otherwise


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(_text(content) + "\n", encoding="utf-8")
    beside.replace(path)


def _text(content: Any) -> str:
    if isinstance(content, list):  # one record a line
        return "[\n" + ",\n".join(json.dumps(record, allow_nan=False) for record in content) + "\n]"
    curves = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(values, allow_nan=False)}" for name, values in content["curves_ms"].items()
    )
    return f'{{"shares": {json.dumps(content["shares"])},\n"curves_ms": {{\n{curves}\n}}}}'
