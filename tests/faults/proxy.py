"""TCP between a client and its server that goes wrong on demand, and addresses at which nobody sensible listens."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST instead of FIN

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Proxy:
    """Forwards connections to a server.

    Attributes:
        address: where it listens.
        flowing: nothing is forwarded while it is cleared, and the connections stay open.
        delay_s: before each piece that is forwarded.
        corrupt: whether every byte of the answers is changed.
        connections: how many were made.
    """

    def __init__(self, target: str) -> None:
        self.address = ""
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.delay_s = 0.0
        self.corrupt = False
        self.connections = 0
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._pairs: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}

    async def connect(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Serve one connection of the client's."""
        self.connections += 1
        server, to_server = await asyncio.open_connection(self._host, self._port)
        self._pairs[to_client] = to_server
        try:
            await asyncio.gather(self._forward(client, to_server, False), self._forward(server, to_client, True))
        except OSError:  # either side is gone, and so is the other one then
            pass
        finally:
            del self._pairs[to_client]
            to_client.close()
            to_server.close()

    def cut(self) -> None:
        """Reset all connections, to both sides."""
        for writers in list(self._pairs.items()):
            for writer in writers:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()

    def end_answers(self) -> None:
        """Tell the clients that nothing more will come, and go on taking in what they send."""
        for to_client in self._pairs:
            _end(to_client)

    def end_requests(self) -> None:
        """Tell the server that nothing more will come, and go on taking in what it answers."""
        for to_server in self._pairs.values():
            _end(to_server)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool) -> None:
        while piece := await source.read(_CHUNK):
            await asyncio.sleep(self.delay_s)
            await self.flowing.wait()
            if answers and self.corrupt:
                piece = bytes(byte ^ 0x55 for byte in piece)
            sink.write(piece)
            await sink.drain()
        if not sink.is_closing():
            sink.write_eof()


def _end(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # whoever would be told has just reset the connection, which its reader is yet to find out
        writer.write_eof()


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[str]:
    """Have connections handled, and return the address."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (OSError, asyncio.CancelledError):  # the end of the test, or of the connection
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await server.wait_closed()


@asynccontextmanager
async def proxying(target: str) -> AsyncIterator[Proxy]:
    """Listen in front of a server."""
    proxy = Proxy(target)
    async with listening(proxy.connect) as proxy.address:
        yield proxy


async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take in everything and say nothing."""
    while await reader.read(_CHUNK):
        pass


async def answer_garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer everything with random bytes."""
    while await reader.read(_CHUNK):
        writer.write(os.urandom(1000))
        await writer.drain()


def closed_port() -> str:
    """Return an address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def black_hole() -> Iterator[str]:
    """Return an address at which attempts to connect are neither taken nor refused: its queue of them is full."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        for _ in range(8):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(full.getsockname())
        try:
            yield f"127.0.0.1:{full.getsockname()[1]}"
        finally:
            for attempt in waiting:
                attempt.close()
