"""Who is let in: no other site's pages, no borrowed names, nobody without the key where there is one."""

import socket

import pytest
from sana_runtime.errors import UsageError
from starlette.datastructures import Headers

from sana_export.serve.entrance import Entrance
from sana_export.serve.refusals import Refusal
from sana_export.serve.server import Options

METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE")
KEY = "a long enough key"


def code(entrance, method="GET", path="/v1/jobs", **headers):
    try:
        entrance.check(method, path, Headers({name.replace("_", "-"): value for name, value in headers.items()}))
    except Refusal as refusal:
        return refusal.code
    return None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/jobs/x", "/v1/images/generations", "/nothing"])
def test_no_method_lets_a_borrowed_name_or_another_origin_in(running, method, path):
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        answer = running.client.request(method, path, headers=headers)
        assert answer.status_code == 403


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("localhost:8000", True),
        ("127.0.0.1:9", True),
        ("LOCALHOST", True),
        ("[::1]:8000", True),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.168.0.7", False),
        ("localhost:8000@evil.example", False),
        ("localhost:evil", False),
        ("", False),
    ],
)
def test_on_loopback_only_loopback_names_count(host, ours):
    assert code(Entrance("127.0.0.1"), host=host) == (None if ours else "wrong_host")


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("10.1.2.3:8000", True),
        ("[fe80::1]", True),
        (socket.gethostname(), True),
        ("paint.example", True),
        ("other.example", False),
    ],
)
def test_elsewhere_addresses_and_names_that_were_given_count(host, ours):
    assert code(Entrance("0.0.0.0", names=("paint.example",)), host=host) == (None if ours else "wrong_host")


@pytest.mark.parametrize(
    ("origin", "ours"),
    [
        ("http://localhost:8000", True),
        ("https://localhost:8000", True),
        ("http://localhost:3000", False),
        ("null", False),
        ("http://localhost", False),
        ("", False),
    ],
)
def test_the_origin_must_be_this_server(origin, ours):
    assert code(Entrance("127.0.0.1"), "POST", host="localhost:8000", origin=origin) == (
        None if ours else "wrong_origin"
    )


def test_a_link_from_elsewhere_may_open_the_page_and_nothing_else():
    link = {"host": "localhost", "sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert code(Entrance("127.0.0.1"), path="/", **link) is None
    assert code(Entrance("127.0.0.1"), path="/v1/jobs/x/result", **link) == "wrong_origin"
    assert code(Entrance("127.0.0.1"), path="/", **{**link, "sec_fetch_mode": "no-cors"}) == "wrong_origin"


def test_the_key_is_asked_for_everywhere_but_on_the_page(serve):
    server = serve(key=KEY)
    for path in ("/v1/jobs/x", "/v1/models", "/v1/capabilities", "/metrics", "/nothing"):
        assert server.get(path).status_code == 401
        assert server.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
        assert server.get(path, headers={"authorization": f"Bearer {KEY}"}).status_code != 401
    for path in ("/", "/app.js", "/style.css", "/icon.svg", "/healthz"):
        assert server.get(path).status_code == 200


@pytest.mark.parametrize(
    "options", [{"host": "0.0.0.0"}, {"host": "::"}, {"key": "short"}, {"key": "ключ" * 5}, {"host": "10.0.0.1"}]
)
def test_a_server_that_strangers_could_use_does_not_start(options):
    with pytest.raises(UsageError):
        Options(**options).check()
    Options(host="0.0.0.0", key=KEY).check()


def test_every_answer_carries_the_protective_headers(running):
    for path in ("/", "/v1/models", "/nothing", "/metrics"):
        headers = running.get(path).headers
        assert "'unsafe" not in headers["content-security-policy"]
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers


def test_the_page_is_small_and_needs_nobody_else(running):
    texts = [running.get(path).text for path in ("/", "/app.js", "/style.css", "/icon.svg")]
    assert sum(len(text.encode()) for text in texts) <= 60_000
    for text in texts:
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert " style=" not in texts[0] and "<script>" not in texts[0] and "<style" not in texts[0]
