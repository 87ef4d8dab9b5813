"""Our own API: jobs that outlive a connection, can be watched, called off, and fetched when they are done."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from sana_export.serve import previews
from sana_export.serve.bodies import read_object
from sana_export.serve.counter import Counter
from sana_export.serve.jobs import Job
from sana_export.serve.models import describe
from sana_export.serve.refusals import Refusal
from sana_export.serve.streams import EventStream, event

__all__ = ["cancel", "capabilities", "create", "events", "health", "metrics", "models", "result", "status"]


async def create(request: Request) -> Response:
    """POST /v1/jobs: take an order."""
    counter = _counter(request)
    job = counter.submit(await read_object(request, counter.limits))
    return JSONResponse(_status(counter, job), 202, {"Location": f"/v1/jobs/{job.id}"})


async def status(request: Request) -> Response:
    """GET /v1/jobs/{id}: where it stands."""
    return JSONResponse(_status(_counter(request), _job(request)))


async def events(request: Request) -> Response:
    """GET /v1/jobs/{id}/events: the same at every change, with a preview, until it is over."""
    return EventStream(_events(_counter(request), _job(request)))


async def cancel(request: Request) -> Response:
    """DELETE /v1/jobs/{id}: call it off."""
    counter, job = _counter(request), _job(request)
    if not counter.studio.cancel(job):
        message = f"the job is {job.state.value} already; fetch its result, or leave it to expire"
        raise Refusal(409, "too_late", message)
    return JSONResponse(_status(counter, job), 202)


async def result(request: Request) -> Response:
    """GET /v1/jobs/{id}/result?index=0: one finished picture, a PNG that holds its own recipe."""
    job, text = _job(request), request.query_params.get("index", "0")
    if not (text.isascii() and text.isdigit() and len(text) < 4):
        raise Refusal(422, "invalid_value", "the index is not a number; give that of a picture, from 0 up", "index")
    picture = job.result(int(text))
    job.fetched.add(int(text))
    name = f'inline; filename="sana-{picture.seed}.png"'
    return Response(picture.png, media_type="image/png", headers={"Content-Disposition": name})


async def models(request: Request) -> Response:
    """GET /v1/models, as OpenAI's clients read it."""
    rows = [
        {"id": name, "object": "model", "created": 0, "owned_by": "sana-export"} for name in _counter(request).models
    ]
    return JSONResponse({"object": "list", "data": rows})


async def capabilities(request: Request) -> Response:
    """GET /v1/capabilities: what may be asked of each model, and every limit."""
    counter = _counter(request)
    described = [describe(model) for model in counter.models.values()]
    return JSONResponse({"models": described, "limits": asdict(counter.limits)})


async def health(request: Request) -> Response:
    """GET /healthz: that the server is there, and what it is doing."""
    studio = _counter(request).studio
    return JSONResponse({"status": "ok", "painting": studio.painting, "waiting": studio.waiting})


async def metrics(request: Request) -> Response:
    """GET /metrics for Prometheus."""
    studio = _counter(request).studio
    page = studio.metrics.render(waiting=studio.waiting, painting=studio.painting)
    return PlainTextResponse(page, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _events(counter: Counter, job: Job) -> AsyncIterator[bytes]:
    async for _ in job.changes():
        name = "over" if job.state.over else "progress"
        yield event(name, {**_status(counter, job), "preview": previews.small(job)})


def _status(counter: Counter, job: Job) -> dict[str, Any]:
    """Where the job stands, in the queue and by the clock."""
    left = counter.studio.seconds_left(job)
    return {
        **job.describe(),
        "queue_position": counter.studio.position(job),
        "seconds_left": None if left is None else round(left, 1),
    }


def _counter(request: Request) -> Counter:
    counter: Counter = request.app.state.counter
    return counter


def _job(request: Request) -> Job:
    return _counter(request).studio.find(request.path_params["id"])
