"""What the client logs, as a log collector reads it: an event's name and its fields, the same ones every time."""

from __future__ import annotations

import ast
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import coin_export.client
from coin_export.client import AfterGrace, AtOnce, CallInfo, CodedClient, Limits, Observer, OnlyWhenDown, Policy, Source
from tests.client.fake_triton import PIXELS, ask_until, eventually, make_group, one_each, started

GROUP = make_group()
INPUTS = {"input": np.ones((1, PIXELS), np.float32)}
PATIENT = Policy(OnlyWhenDown(), AfterGrace(at_least_s=30.0))

FIELDS = {
    "build_changed": {"group", "old", "new"},
    "server_down": {"server", "reason"},
    "server_up": {"server"},
    "model_unserved": {"model"},
    "abandoned_overflow": {"server", "abandoned"},
    "observer_failed": {"observer"},
}
_ORDINARY = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What a record carries beyond what every record does."""
    return {name: value for name, value in vars(record).items() if name not in _ORDINARY}


def events(caplog: pytest.LogCaptureFixture) -> dict[str, dict[str, object]]:
    """The last record's fields by event; every record must have exactly the fields of its event."""
    found = {}
    for record in caplog.records:
        if record.name == "coin_export.client":
            fields = fields_of(record)
            event = str(fields.pop("event"))
            assert set(fields) == FIELDS[event]
            found[event] = fields
    return found


async def test_a_server_that_goes_and_comes_is_two_events(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="coin_export.client")
    servers = one_each(GROUP)
    limits = Limits(lookup_interval_s=0.01, close_s=0.05)
    async with started(*servers) as addresses, CodedClient(addresses, limits=limits, policy=PATIENT) as client:
        await servers[0].stop()
        await ask_until(client, lambda answers: answers["a"].source is Source.DECODED)
        await eventually(lambda: "server_down" in events(caplog))
        await servers[0].start()
        await ask_until(client, lambda answers: answers["a"].source is Source.DIRECT)
        found = events(caplog)
        assert found["server_down"]["server"] == found["server_up"]["server"] == addresses[0]
        assert "UNAVAILABLE" in str(found["server_down"]["reason"])


async def test_a_model_without_a_server_is_an_event(caplog: pytest.LogCaptureFixture) -> None:
    servers = one_each(GROUP)
    async with started(*servers) as addresses:
        await servers[2].stop()
        async with CodedClient(addresses):
            assert events(caplog)["model_unserved"] == {"model": "coded_0"}


async def test_too_many_abandoned_calls_are_an_event(caplog: pytest.LogCaptureFixture) -> None:
    servers = one_each(GROUP)
    servers[0].hold.clear()
    policy = Policy(AtOnce(), AfterGrace(at_least_s=0.0, share=0.0))
    limits = Limits(abandoned_per_server=2, close_s=0.05)
    async with started(*servers) as addresses, CodedClient(addresses, limits=limits, policy=policy) as client:
        for _ in range(2):
            await client.infer(INPUTS)
        assert events(caplog)["abandoned_overflow"] == {"server": addresses[0], "abandoned": 2}


async def test_an_observer_that_fails_is_an_event(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Observer):
        def call_begun(self, call: CallInfo) -> Mapping[str, str]:
            raise ZeroDivisionError

    async with started(*one_each(GROUP)) as addresses, CodedClient(addresses, observers=[Broken()]) as client:
        await client.infer(INPUTS)
    assert events(caplog) == {"observer_failed": {"observer": "Broken"}}


def calls_of(source: str, owner: str | None, names: set[str]) -> list[ast.Call]:
    """The calls of these functions, or of these methods of ``owner``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name == owner and attribute in names:
                found.append(node)
            case ast.Name(id=name) if owner is None and name in names:
                found.append(node)
    return found


@pytest.mark.parametrize("path", sorted(Path(coin_export.client.__path__[0]).glob("*.py")), ids=lambda path: path.name)
def test_nothing_is_logged_without_fields_or_printed(path: Path) -> None:
    source = path.read_text()
    assert not calls_of(source, None, {"print"})
    for call in calls_of(source, "logger", {"debug", "info", "warning", "error", "exception", "critical", "log"}):
        assert "extra" in {keyword.arg for keyword in call.keywords}, f"{path.name}:{call.lineno}"
