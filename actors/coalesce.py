"""Items of a stream that come close together, as one: a message between processes costs more than the tokens in it.

async for batch in together(events, interval_s=0.05): ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any


async def together(items: AsyncIterator[Any], interval_s: float) -> AsyncIterator[list[Any]]:
    """The first item at once, later ones in batches of `interval_s`, the last ones as soon as the source has ended."""
    queue: asyncio.Queue[Any] = asyncio.Queue()
    done = object()

    async def read() -> None:
        try:
            async for item in items:
                queue.put_nowait(item)
        finally:
            queue.put_nowait(done)

    reader = asyncio.create_task(read())
    try:
        while True:
            batch = [await queue.get()]
            while not queue.empty():
                batch.append(queue.get_nowait())
            ended = batch[-1] is done
            if ended:
                batch.pop()
            if batch:
                yield batch
            if ended:
                await reader  # raises what it raised
                return
            await asyncio.wait({reader}, timeout=interval_s)
    finally:
        if not reader.done():
            reader.cancel()
