"""The synchronous face takes what the asyncio client takes, argument by argument."""

from __future__ import annotations

import inspect

import pytest

from coin_export.client import CodedClient, SyncCodedClient

PUBLIC = [name for name, _ in inspect.getmembers(CodedClient) if not name.startswith("_")]


def test_both_have_the_same_public_names() -> None:
    assert [name for name, _ in inspect.getmembers(SyncCodedClient) if not name.startswith("_")] == PUBLIC
    assert {"infer", "infer_mean", "connect", "close", "group", "servers", "server_versions"} <= set(PUBLIC)


@pytest.mark.parametrize("name", ["__init__", *PUBLIC])
def test_a_name_is_the_same_kind_of_thing_with_the_same_arguments_and_result(name: str) -> None:
    asynchronous, synchronous = getattr(CodedClient, name), getattr(SyncCodedClient, name)
    if isinstance(asynchronous, property):
        assert isinstance(synchronous, property)
        asynchronous, synchronous = asynchronous.fget, synchronous.fget
    assert inspect.signature(asynchronous) == inspect.signature(synchronous)
    assert not inspect.iscoroutinefunction(synchronous)
