"""The error tree: what a process raises, another one can read."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from coin_export.client import Answer, Source
from coin_export.client.transport import RefusedError
from coin_export.errors import CoinExportError, TransportError, UndecodableError

ANSWER = Answer("a", {"logits": np.ones((1, 3), np.float32)}, Source.DIRECT, 0.0, None, 0.1, "1", "r7")
FIELDS: dict[type[CoinExportError], dict[str, Any]] = {
    TransportError: {"address": "127.0.0.1:8001"},
    UndecodableError: {"arrived": {"a": ANSWER}, "failures": {"b": "out of memory"}, "elapsed_s": 0.5},
}


def tree(base: type[CoinExportError] = CoinExportError) -> Iterator[type[CoinExportError]]:
    yield base
    for kind in base.__subclasses__():
        yield from tree(kind)


KINDS = [kind for kind in tree() if kind.__module__.startswith("coin_export.")]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_a_process_boundary(kind: type[CoinExportError]) -> None:
    fields = next((fields for base, fields in FIELDS.items() if issubclass(kind, base)), {})
    error = pickle.loads(pickle.dumps(kind("server x: out of memory", **fields)))
    assert type(error) is kind and str(error) == "server x: out of memory" and vars(error).keys() == fields.keys()
    if isinstance(error, TransportError):
        assert error.address == "127.0.0.1:8001"
    if isinstance(error, UndecodableError):
        assert error.failures == {"b": "out of memory"} and error.elapsed_s == 0.5
        np.testing.assert_array_equal(error.arrived["a"].outputs["logits"], ANSWER.outputs["logits"])


def test_the_whole_tree_is_looked_at() -> None:
    assert {TransportError, RefusedError, UndecodableError} <= set(KINDS) and len(KINDS) > 20
