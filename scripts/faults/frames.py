"""A TCP relay that counts the HTTP/2 frames a client sends: a cancelled gRPC call is an RST_STREAM on the wire."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

HEADERS, RST_STREAM = 0x1, 0x3

_PREFACE = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
_HEAD = 9  # bytes before a frame's content: its length (3), type (1), flags (1) and stream (4)
_CHUNK = 1 << 16


class FrameCounter:
    """Relays connections to a server.

    Attributes:
        sent: frames that clients sent, by type; one HEADERS frame for each call.
        connections: how many were made.
    """

    def __init__(self) -> None:
        self.sent: Counter[int] = Counter()
        self.connections = 0

    @asynccontextmanager
    async def before(self, address: str) -> AsyncIterator[str]:
        """Listen in front of a server, and return the address."""
        host, _, port = address.rpartition(":")
        tasks: set[asyncio.Task[None]] = set()

        async def relay(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
            self.connections += 1
            server, to_server = await asyncio.open_connection(host, int(port))
            tasks.add(asyncio.create_task(_forward(server, to_client)))
            tasks.add(asyncio.create_task(self._count(client, to_server)))

        listener = await asyncio.start_server(relay, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        finally:
            listener.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await listener.wait_closed()

    async def _count(self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        """Forward what a client sends, frame by frame."""
        with suppress(asyncio.IncompleteReadError, OSError):
            try:
                to_server.write(await client.readexactly(_PREFACE))
                while True:
                    head = await client.readexactly(_HEAD)
                    self.sent[head[3]] += 1
                    to_server.write(head + await client.readexactly(int.from_bytes(head[:3], "big")))
                    await to_server.drain()
            finally:
                to_server.close()


async def _forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        try:
            while piece := await source.read(_CHUNK):
                sink.write(piece)
                await sink.drain()
        finally:
            sink.close()
