"""POST /v1/images/generations as OpenAI's clients send it, whole or as a stream of partial pictures."""

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sana_export.serve import previews
from sana_export.serve.bodies import read_object
from sana_export.serve.counter import Counter
from sana_export.serve.fields import Flag, OneOf, Reader, Text, Whole, read_fields
from sana_export.serve.jobs import Finished, Job
from sana_export.serve.orders import order_fields
from sana_export.serve.streams import EventStream, event, stays

__all__ = ["generate"]

MOST_PARTIAL = 3  # partial pictures, as OpenAI allows
STREAM_FIELDS: Mapping[str, Reader] = {"stream": Flag(), "partial_images": Whole(0, MOST_PARTIAL)}
# What OpenAI's models can be told and these cannot: only the values that change nothing are taken.
FIXED_FIELDS: Mapping[str, Reader] = {
    "response_format": OneOf(("b64_json",)),
    "output_format": OneOf(("png",)),
    "output_compression": Whole(100, 100),
    "quality": OneOf(("auto", "standard")),
    "background": OneOf(("auto", "opaque")),
    "moderation": OneOf(("auto",)),
    "style": OneOf(("natural",)),
    "user": Text(),
}


async def generate(request: Request) -> Response:
    """The pictures, once all are finished; or events while they are painted."""
    counter: Counter = request.app.state.counter
    given = await read_object(request, counter.limits)
    all_fields = {**order_fields(counter.limits), **STREAM_FIELDS, **FIXED_FIELDS}
    fields = read_fields(given, all_fields)
    own = {name: value for name, value in fields.items() if name not in {**STREAM_FIELDS, **FIXED_FIELDS}}
    job = counter.submit(own)
    if fields.get("stream", False):
        events = _events(job, fields.get("partial_images", 0))
        return EventStream(events, on_leave=lambda: counter.studio.forget(job))
    if not await stays(job, request.receive):
        counter.studio.forget(job)
        return Response(status_code=499)  # nobody reads this
    if job.refusal is not None:
        raise job.refusal
    pictures = [job.result(i) for i in range(job.order.count)]
    answer = JSONResponse({**_about(job, "created"), "data": [_picture(picture) for picture in pictures]})
    job.fetched.update(range(job.order.count))
    return answer


async def _events(job: Job, partial: int) -> AsyncIterator[bytes]:
    """Partial pictures at even distances, then each finished one, in the order in which they are painted."""
    sent, shown = 0, 0
    async for _ in job.changes():
        while sent < len(job.pictures):
            yield _event(job, "completed", job.pictures[sent].png, seed=job.pictures[sent].seed)
            job.fetched.add(sent)
            sent, shown = sent + 1, 0
        png = previews.enlarged(job) if shown < _due(job, partial) and not job.state.over else None
        if png is not None:
            yield _event(job, "partial_image", png, partial_image_index=shown)
            shown += 1
        else:
            yield b": still painting\n\n"  # keeps the connection alive, and tells us when it is not
    if job.refusal is not None:
        yield event("error", {"type": "error", **job.refusal.body()})


def _due(job: Job, partial: int) -> int:
    """How many of the partial pictures should be out by now."""
    step = job.event
    if step is None or step.stage != "paint":
        return 0
    return min(partial, step.index * (partial + 1) // step.total)


def _event(job: Job, kind: str, png: bytes, **more: Any) -> bytes:
    name = f"image_generation.{kind}"
    return event(name, {"type": name, "b64_json": previews.text(png), **_about(job, "created_at"), **more})


def _about(job: Job, when: str) -> dict[str, Any]:
    height, width = job.order.size
    fixed = {"background": "opaque", "output_format": "png", "quality": "auto"}
    return {when: int(time.time()), "size": f"{width}x{height}", **fixed}


def _picture(picture: Finished) -> dict[str, Any]:
    return {"b64_json": previews.text(picture.png), "seed": picture.seed}
