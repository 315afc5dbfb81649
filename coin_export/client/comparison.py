"""Which servers are slow, told by how long the calls of one and the same request take. No IO, no clock."""

from __future__ import annotations

import math
from collections.abc import Collection


class Comparison:
    """Compares the calls of one request.

    It speaks against a server that its call took too long only if at least half of the other wanted originals answered
    the very same request promptly: else the request may be what takes long, or all are slow.

    Args:
        wanted: the originals whose answers are asked for.
        slow_s: from how many seconds on a call took too long; infinite where nothing is to be compared.
    """

    def __init__(self, wanted: Collection[int], slow_s: float) -> None:
        self._wanted = wanted
        self._slow_s = slow_s
        self._judged: set[int] = set()
        self._prompt = 0  # how many of these are wanted and were prompt

    def judge(self, row: int, took_s: float, answered: bool) -> bool | None:
        """Judge by the time that a call to a member has taken whether its server is slow; each call is judged once.

        Args:
            row: the member.
            took_s: seconds since the call was sent.
            answered: whether it has ended with a usable answer.

        Returns:
            True for a prompt answer, False for a call that took too long; None if there is no telling, or not yet.
        """
        if self._slow_s == math.inf or row in self._judged:
            return None
        wanted, prompt = row in self._wanted, took_s < self._slow_s
        if not (answered if prompt else 2 * self._prompt >= len(self._wanted) - wanted):
            return None
        self._prompt += prompt and wanted
        self._judged.add(row)
        return prompt

    def asked_anew(self, row: int) -> None:
        """Take note that a member is asked once more, at another server."""
        self._judged.discard(row)
