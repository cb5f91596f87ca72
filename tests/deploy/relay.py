"""A slow, lossy link between a device and the server, in user space: a relay of TCP connections.

TCP hides lost packets from who uses it: what is left of loss are stalls and broken connections, so
the relay makes those. It knows nothing of what it carries.

Usage::

    relay.py LISTEN-HOST:PORT TO-HOST:PORT TOLD [--delay S] [--rate BYTES/S] [--reset-every S]
             [--stall-every S] [--stall S] [--seed N]

What it did is in the JSON file ``TOLD``: connections, bytes each way, resets, stalls.
"""

import argparse
import asyncio
import json
import random
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

CHUNK = 16 * 1024


@dataclass(frozen=True)
class Link:
    """How bad it is: seconds one way, bytes a second, and mean seconds between troubles."""

    delay: float
    rate: float
    reset_every: float
    stall_every: float
    stall: float


@dataclass
class Told:
    """What became of it."""

    connections: int = 0
    up: int = 0
    down: int = 0
    resets: int = 0
    stalls: int = 0


class Relay:
    """Carries connections to ``to`` over ``link``."""

    def __init__(self, to, link, seed, file):
        self.to, self.link, self.random, self.file = to, link, random.Random(seed), file
        self.told, self.ends = Told(), set()
        self.free = asyncio.Event()
        self.free.set()

    async def carry(self, reader, writer):
        """Carry one connection until either side, or the link, ends it."""
        try:
            there, back = await asyncio.open_connection(*self.to)
        except OSError:
            writer.transport.abort()
            return
        self.told.connections += 1
        ends = (writer.transport, back.transport)
        self.ends.add(ends)
        try:
            await asyncio.gather(self.pump(reader, back, "up"), self.pump(there, writer, "down"))
        except OSError:
            pass
        finally:
            self.ends.discard(ends)
            for end in ends:
                end.abort()

    async def pump(self, reader, writer, way):
        """Pass bytes on, each chunk as late as distance and bandwidth make it."""
        chunks = asyncio.Queue(maxsize=64)  # of what is under way
        loop = asyncio.get_running_loop()

        async def read():
            while data := await reader.read(CHUNK):
                await asyncio.sleep(len(data) / self.link.rate)
                await chunks.put((loop.time() + self.link.delay, data))
            await chunks.put((loop.time() + self.link.delay, b""))

        reading = asyncio.create_task(read())
        try:
            while True:
                due, data = await chunks.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await self.free.wait()
                if not data:
                    break
                writer.write(data)
                await writer.drain()
                setattr(self.told, way, getattr(self.told, way) + len(data))
            with suppress(OSError):
                writer.write_eof()
        finally:
            reading.cancel()

    async def reset(self):
        """Break all connections now and then, whatever is under way."""
        while True:
            await asyncio.sleep(self.random.expovariate(1 / self.link.reset_every))
            broken = list(self.ends)
            for ends in broken:
                for end in ends:
                    end.abort()
            self.told.resets += bool(broken)

    async def hold(self):
        """Let nothing through now and then, for as long as TCP takes to send again."""
        while True:
            await asyncio.sleep(self.random.expovariate(1 / self.link.stall_every))
            self.free.clear()
            await asyncio.sleep(self.link.stall)
            self.free.set()
            self.told.stalls += 1

    async def tell(self):
        """Keep the file true."""
        while True:
            self.file.write_text(json.dumps(asdict(self.told)))
            await asyncio.sleep(0.5)


async def serve(listen, relay):
    """Serve until the process ends."""
    server = await asyncio.start_server(relay.carry, *listen)
    async with server:
        await asyncio.gather(relay.reset(), relay.hold(), relay.tell())


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for place in ("listen", "to"):
        parser.add_argument(place, type=lambda s: (s.rpartition(":")[0], int(s.rpartition(":")[2])))
    parser.add_argument("told", type=Path)
    parser.add_argument("--delay", type=float, default=0.1)
    parser.add_argument("--rate", type=float, default=250e3)
    parser.add_argument("--reset-every", type=float, default=20.0)
    parser.add_argument("--stall-every", type=float, default=5.0)
    parser.add_argument("--stall", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    link = Link(chosen.delay, chosen.rate, chosen.reset_every, chosen.stall_every, chosen.stall)

    async def run():
        await serve(chosen.listen, Relay(chosen.to, link, chosen.seed, chosen.told))

    asyncio.run(run())


if __name__ == "__main__":
    main()
