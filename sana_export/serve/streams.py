"""Answers that go on while a picture is painted, and the client who may leave meanwhile."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sana_export.serve.jobs import Job

__all__ = ["EventStream", "event", "stays"]


def event(name: str, data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


async def stays(job: Job, receive: Receive) -> bool:
    """Wait until the job is over; False as soon as the client has left."""
    return await _first(job.over(), receive)


class EventStream(Response):
    """Server-sent events; `on_leave` is called when the client goes before their end."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], on_leave: Callable[[], None] | None = None) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]  # nobody knows yet
        self._events = events
        self._on_leave = on_leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come."""

        async def work() -> None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in self._events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        ended = False
        try:
            ended = await _first(work(), receive)
        finally:
            if not ended and self._on_leave is not None:
                self._on_leave()


async def _first(work: Any, receive: Receive) -> bool:
    """Do the work to its end; False when the client left before."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        working.result()
        return True
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
