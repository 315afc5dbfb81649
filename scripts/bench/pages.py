"""Tables that a script makes, put into a page where comments mark their place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def replace_between(page: Path, tables: Mapping[str, str]) -> None:
    """Put each table between the comments ``<!-- name -->`` and ``<!-- end of name -->``, in place of what is there.

    Raises:
        ValueError: if the page lacks them; it is then as it was.
    """
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if start not in text or end not in text:
            raise ValueError(f"{page} lacks {start.strip()!r} or {end!r}; put them where the table {name!r} belongs")
        before, rest = text.split(start, 1)
        text = f"{before}{start}{table}\n{end}{rest.split(end, 1)[1]}"
    page.write_text(text, encoding="utf-8")
