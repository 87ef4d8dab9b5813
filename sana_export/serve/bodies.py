"""Read a request's body: JSON, small, and soon."""

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect, Request

from sana_export.serve.fields import parse_object
from sana_export.serve.limits import Limits
from sana_export.serve.refusals import Refusal

__all__ = ["read_object"]

SWALLOWED = 16  # times the limit that is still read, and thrown away, so that the client gets to see the answer


async def read_object(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object that the client sent."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "not_json", "the Content-Type is not application/json; send one JSON object")
    try:
        body = await asyncio.wait_for(_read(request, limits.body_bytes), limits.patience_seconds)
    except asyncio.TimeoutError:
        message = f"the body took more than {limits.patience_seconds:g} s; send it in one go"
        raise Refusal(408, "too_slow", message, headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise Refusal(400, "incomplete", "the connection ended before the body did; send it again") from None
    if len(body) > limits.body_bytes:
        message = f"the body has more than {limits.body_bytes} bytes; a prompt needs few of them"
        raise Refusal(413, "too_large", message, headers={"Connection": "close"})
    return parse_object(body)


async def _read(request: Request, most: int) -> bytes:
    """The body, or as much of it as shows that it is too long."""
    body, read = bytearray(), 0
    async for chunk in request.stream():
        read += len(chunk)
        if len(body) <= most:
            body += chunk
        if read > most * SWALLOWED:
            break
    return bytes(body)
