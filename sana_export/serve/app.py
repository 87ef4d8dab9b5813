"""The web application: every address, and what answers there."""

import logging
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from sana_export.serve import images, native
from sana_export.serve.counter import Counter
from sana_export.serve.entrance import Entrance, Gate, json_refusal
from sana_export.serve.refusals import Refusal, refusal_of

__all__ = ["make_app"]

PAGE = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
CODES = {404: "not_found", 405: "method_not_allowed"}

log = logging.getLogger("sana_export.serve")


def make_app(counter: Counter, entrance: Entrance) -> ASGIApp:
    """The application for one server."""
    app = Starlette(
        routes=[
            Route("/v1/images/generations", images.generate, methods=["POST"]),
            Route("/v1/jobs", native.create, methods=["POST"]),
            Route("/v1/jobs/{id}", native.status, methods=["GET"]),
            Route("/v1/jobs/{id}", native.cancel, methods=["DELETE"]),
            Route("/v1/jobs/{id}/events", native.events, methods=["GET"]),
            Route("/v1/jobs/{id}/result", native.result, methods=["GET"]),
            Route("/v1/models", native.models, methods=["GET"]),
            Route("/v1/capabilities", native.capabilities, methods=["GET"]),
            Route("/healthz", native.health, methods=["GET"]),
            Route("/metrics", native.metrics, methods=["GET"]),
            *(_static(path, *asset) for path, asset in PAGE.items()),
        ],
        exception_handlers={Refusal: json_refusal, HTTPException: _plain_refusal, Exception: _failure},
    )
    app.state.counter = counter
    return Gate(app, entrance, counter.studio.metrics)


def _static(path: str, name: str, kind: str) -> Route:
    content = files("sana_export.serve").joinpath("page", name).read_bytes()

    def answer(request: Request) -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return Route(path, answer, methods=["GET"])


def _plain_refusal(request: Request, error: Exception) -> Response:
    """What starlette itself refuses."""
    assert isinstance(error, HTTPException)
    remedy = "see /v1/capabilities and docs/server.md"
    message = f"{request.method} is not answered here" if error.status_code == 405 else "there is nothing here"
    code = CODES.get(error.status_code, "refused")
    refusal = Refusal(error.status_code, code, f"{message}; {remedy}", headers=dict(error.headers or {}))
    return json_refusal(request, refusal)


def _failure(request: Request, error: Exception) -> Response:
    """A bug of ours: told to the log in full, to the client in one line."""
    log.error("answering %s failed", request.scope["path"], exc_info=error)
    return json_refusal(request, refusal_of(RuntimeError()))
