"""HTTP with limits on patience: clients that send or read too slowly, or come in crowds, are let go."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from sana_export.serve.limits import Limits
from sana_export.serve.refusals import Refusal

__all__ = ["LimitedProtocol"]

LIMITS = Limits()


class LimitedProtocol(H11Protocol):
    """uvicorn's protocol, which by itself waits for ever for a request's headers and for a client to read."""

    limits = LIMITS
    _sending: asyncio.TimerHandle | None = None  # until the headers of a request must be here
    _reading: asyncio.TimerHandle | None = None  # until the client must have read what was sent

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come; one too many is sent away."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.abort()
        else:
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        super().connection_lost(exc)
        self._stop_waiting()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Some bytes: part of a request, or all of it."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._sending is None and not self.transport.is_closing():
            self._expect_request()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        if self._reading is None:
            self._reading = self.loop.call_later(self.limits.reading_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets an answer in the same shape as everything else."""
        refusal = Refusal(400, "not_http", "this is not a valid HTTP request; use an HTTP client")
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=json.dumps(refusal.body()).encode()),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_request(self) -> None:
        self._sending = self.loop.call_later(self.limits.patience_seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
