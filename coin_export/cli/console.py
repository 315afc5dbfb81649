"""What every command prints with: answers go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from coin_export.code.manifest import Group

out = Console()
log = Console(stderr=True)


def print_json(value: Any) -> None:
    """Print plain data for machines."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_group(group: Group) -> None:
    """Print what is known of a group, for people."""
    from coin_export.evaluate.report import group_tables

    out.print(group_tables(group), highlight=False)
