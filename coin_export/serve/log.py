"""What matters in a tritonserver log when the server did not start."""

from __future__ import annotations

import re

_SOURCES = ("model_repository_manager.cc", "model_lifecycle.cc", "main.cc")
_ERROR = re.compile(r'^E\d{4} \S+ +\d+ (?P<source>[\w.]+):\d+\] "(?P<message>.*)"$')
_PROTOBUF = re.compile(r"^\[libprotobuf ERROR [^\]]*\] (?P<message>.*)$")
_LAST_WORDS = re.compile(r"^(?P<message>error: .*|Signal \(\d+\) received\.)$")
_PORT_TAKEN = re.compile(r"Socket '[^']*:(\d+)' already in use")
_NOISE = re.compile(r"^\s*$|^[+|]")
_TAIL_LINES = 5


def essential_errors(log: str) -> list[str]:
    """Return the errors that say why a server or a model did not start; failing those, the log's last lines."""
    lines = log.splitlines()
    found = [message for line in lines if (message := _error(line))]
    last_words = [match["message"] for line in lines if (match := _LAST_WORDS.match(line))]
    tail = [line for line in lines if not _NOISE.match(line)][-_TAIL_LINES:]
    return list(dict.fromkeys(found or last_words or tail))


def taken_port(log: str) -> int | None:
    """Return the port that the server found taken, if that is why it ended."""
    match = _PORT_TAKEN.search(log)
    return int(match[1]) if match else None


def _error(line: str) -> str | None:
    match = _ERROR.match(line)
    if match and match["source"] in _SOURCES:
        # What follows the first line break, which the server writes as \n, is a Python traceback.
        return match["message"].split("\\n", 1)[0].replace("\\'", "'").strip()
    match = _PROTOBUF.match(line)
    return match["message"] if match else None
