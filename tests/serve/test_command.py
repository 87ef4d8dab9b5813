"""`sana-export serve` as it is typed."""

import json
import os
import signal
import subprocess
import sys

import httpx
import pytest

from sana_export.cli import main

PROGRAM = [sys.executable, "-c", "from sana_export.cli.main import main; main()", "serve"]


def started(bundle, *options):
    """A server in a process of its own, and where it listens."""
    environment = {**os.environ, "SANA_EXPORT_API_KEY": ""}
    environment.pop("SANA_EXPORT_API_KEY")
    command = [*PROGRAM, str(bundle), "--port", "0", "--json", *map(str, options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    process = subprocess.Popen(command, **pipes)
    return process, json.loads(process.stdout.readline())["url"]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no signals to stop a server with")
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_and_its_pictures_are_kept(bundle, tmp_path, sign):
    process, url = started(bundle, "--unfetched", tmp_path / "kept", "--max-steps", 5, "--queue", 1)
    with process, httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/v1/capabilities").json()["limits"]["queue"] == 1
        assert client.post("/v1/jobs", json={"prompt": "a star", "steps": 6}).status_code == 422
        job = client.post("/v1/jobs", json={"prompt": "a star", "steps": 5}).headers["location"]
        while client.get(job).json()["status"] != "done":
            pass
        process.send_signal(sign)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    (kept,) = (tmp_path / "kept").glob("*.png")
    assert json.loads(out.splitlines()[-1]) == {
        "event": "note",
        "message": f"nobody fetched it, so it was kept: {kept}",
    }


@pytest.mark.parametrize("options", [["--host", "0.0.0.0"], ["--api-key", "short"], ["--port", "99999"]])
def test_a_dangerous_server_is_refused_in_one_line(bundle, capsys, options):
    with pytest.raises(SystemExit) as left:
        main(["serve", str(bundle), *options])
    told = [line for line in capsys.readouterr().err.splitlines() if "%" not in line[:5] and "still " not in line[:11]]
    assert left.value.code == 2
    assert len(told) == 1


def test_a_port_that_is_taken_is_refused(running, bundle, capsys):
    with pytest.raises(SystemExit) as left:
        main(["serve", str(bundle), "--port", running.url.rpartition(":")[2]])
    assert left.value.code == 2
    assert "choose another --port" in capsys.readouterr().err


def test_what_is_no_bundle_is_refused_before_a_port_is_opened(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["serve", str(tmp_path), "--port", "0"])
    assert left.value.code == 3
