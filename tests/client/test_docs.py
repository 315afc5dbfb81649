"""The client's page says what the code does: the same metrics, events and names."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from coin_export.client.metrics import MetricsObserver
from scripts.bench_observers import page_table
from tests.client.test_logging import FIELDS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "client.md").read_text(encoding="utf-8")


def test_the_metrics_are_those_of_the_code() -> None:
    registry = CollectorRegistry()
    MetricsObserver(registry)
    names = {family.name + ("_total" if family.type == "counter" else ""): family.type for family in registry.collect()}
    assert dict(re.findall(r"^\| `(coin_client_\w+)` \| (\w+) \|", PAGE, re.MULTILINE)) == names
    assert set(re.findall(r"^    (coin_client_\w+) ", str(MetricsObserver.__doc__), re.MULTILINE)) == set(names)


def test_the_log_events_and_their_fields_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:info|warning|error) \| (.*?) \|", PAGE, re.MULTILINE)
    assert {event: set(re.findall(r"`(\w+)`", fields)) for event, fields in rows} == FIELDS


def test_the_python_that_is_shown_is_python_and_imports_what_exists() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    for block in blocks:
        tree = compile(block, "docs/client.md", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names)


def test_every_class_that_is_called_in_the_page_exists() -> None:
    client = importlib.import_module("coin_export.client")
    names = {name for name in re.findall(r"`([A-Z]\w+)\(", PAGE)} - {"TracingObserver", "MetricsObserver"}
    assert names and all(hasattr(client, name) for name in names)


def test_what_observers_cost_is_what_was_measured() -> None:
    records = json.loads((DOCS / "results" / "observers.json").read_text(encoding="utf-8"))["records"]
    assert page_table(records) in PAGE
