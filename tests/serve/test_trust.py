"""Strangers: malformed requests and slow clients. `make trust-server` sends many more of both."""

import contextlib
import http.client
import json
import os
import random
import socket
import threading
import time

import pytest

from sana_export.serve.limits import Limits
from sana_export.serve.metrics import resident_bytes

REQUESTS = int(os.environ.get("SANA_TRUST_REQUESTS", "300"))
CLIENTS = int(os.environ.get("SANA_TRUST_CLIENTS", "20"))
SECONDS = float(os.environ.get("SANA_TRUST_SECONDS", "2"))

PATHS = ("/v1/images/generations", "/v1/jobs", "/v1/jobs/x", "/v1/jobs/x/result?index=", "/v1/models", "/", "/healthz")
METHODS = ("GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS", "BREW")
FIELDS = ("prompt", "n", "size", "seed", "steps", "guidance", "model", "stream", "solver", "x", "partial_images")
VALUES = (None, True, -1, 0, 2**70, 1e308, "", "x" * 9000, "\ud800", "\0", [], {}, "1x1", "-32x32", "٣٢x٣٢", [[[]]])
RAW = (
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 20000 + b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
)


def malformed(rng):
    """Bytes of one request that cannot be carried out."""
    if rng.random() < 0.2:
        raw = bytearray(rng.choice(RAW))
        for _ in range(rng.randrange(3)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        return bytes(raw)
    fields = {rng.choice(FIELDS): rng.choice(VALUES) for _ in range(rng.randrange(4))}
    if fields.get("prompt") in ("", "\0"):  # these can be painted
        fields["n"] = 0
    body = json.dumps(fields).encode()
    body = body[: rng.randrange(len(body) + 1)] if rng.random() < 0.3 else body
    kind = rng.choice(("application/json", "application/json; charset=utf-16", "text/plain", ""))
    head = f"{rng.choice(METHODS)} {rng.choice(PATHS)} HTTP/1.1\r\nHost: {rng.choice(('localhost', 'x', ''))}\r\n"
    return f"{head}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def answer_to(port, request):
    """Status of the answer; None where the connection was closed without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        try:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            answer = http.client.HTTPResponse(client)
            answer.begin()
            return answer.status
        except (OSError, http.client.HTTPException):
            return None


def port_of(server):
    return int(server.url.rpartition(":")[2])


def test_malformed_requests_are_never_our_failure_and_cost_no_memory(running):
    rng, port = random.Random(9), port_of(running)
    running.wait(running.begin(), "done")  # so that the model is loaded
    for _ in range(REQUESTS // 10):
        answer_to(port, malformed(rng))
    before, statuses = resident_bytes(), set()
    for _ in range(REQUESTS):
        statuses.add(answer_to(port, malformed(rng)))
    assert not [status for status in statuses if status is not None and status >= 500]
    assert statuses >= ({200, 400, 403, 404, 405, 415, 422} if REQUESTS >= 10_000 else {400, 403})
    if before is not None:
        assert resident_bytes() < before * 1.05
    assert running.wait(running.begin(), "done")


def slow_client(port, stop, manner):
    """Holds a connection as long as it can, in one of several ways, and comes back when it is let go."""
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n"
    sent = (b"", head, head + b"\r\n{")[manner % 3]
    while not stop.is_set():
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                client.sendall(sent)
                while not stop.wait(0.3):
                    client.sendall(b"x" if sent else b"\r\n")
        except OSError:
            stop.wait(0.05)


def test_slow_clients_do_not_keep_others_from_painting(serve):
    server = serve(limits=Limits(patience_seconds=1.0))
    server.wait(server.begin(), "done")
    stop, port = threading.Event(), port_of(server)
    slow = [threading.Thread(target=slow_client, args=(port, stop, i), daemon=True) for i in range(CLIENTS)]
    for thread in slow:
        thread.start()
    end, painted = time.monotonic() + SECONDS, 0
    while time.monotonic() < end or not painted:
        assert server.post("/v1/images/generations", json={"prompt": "a star", "steps": 2}).status_code == 200
        painted += 1
    stop.set()
    for thread in slow:
        thread.join(10)
    print(f"{painted} pictures painted beside {CLIENTS} slow clients in {SECONDS:.0f} s")


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n"])
def test_who_does_not_finish_a_request_is_let_go(serve, sent):
    server = serve(limits=Limits(patience_seconds=0.3))
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=30) as client:
        client.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""


def test_who_does_not_finish_a_body_is_told(serve):
    server = serve(limits=Limits(patience_seconds=0.3))
    head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=30) as client:
        client.sendall(head.encode())
        assert client.recv(100).startswith(b"HTTP/1.1 408 ")
