"""Answers other than a picture: one JSON object each, with one line that says what, why and what to do."""

from dataclasses import dataclass, field
from typing import Any

from sana_runtime.errors import MemoryLimitError, SanaError, UsageError
from sana_runtime.session import Interrupted

__all__ = ["Refusal", "refusal_of"]

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass(eq=False)
class Refusal(SanaError):
    """A request that is not carried out; `code` is for programs, `param` names the field that is to blame."""

    status: int
    code: str
    message: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """What the client is told, in the shape that clients of OpenAI's API expect."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "code": self.code, "param": self.param}}


def refusal_of(error: Exception) -> Refusal:
    """The answer to a failure while painting."""
    message = " ".join(str(error).split())
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UsageError):
        return Refusal(422, "invalid_value", message)
    if isinstance(error, Interrupted):
        return Refusal(409, "cancelled", "the job was cancelled; send it again to paint it")
    if isinstance(error, MemoryLimitError | MemoryError):
        told = message or "not enough memory; try a smaller size or fewer pictures"
        return Refusal(503, "out_of_memory", told, headers={"Retry-After": "60"})
    if isinstance(error, SanaError):
        return Refusal(500, "not_paintable", message)
    return Refusal(500, "internal", "the server failed at this; its log says where, and the next request may go well")
