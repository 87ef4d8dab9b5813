"""The commands on the server's page of the documentation do what it says."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/server.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.replace("\\\n", "").splitlines()
]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_the_page_is_answered(running, command):
    ours = command.replace("http://127.0.0.1:8000", running.url)
    assert ours != command
    done = subprocess.run(["sh", "-c", f"{ours} --fail"], capture_output=True, text=True, check=True)
    if "/metrics" not in command:
        assert "error" not in json.loads(done.stdout) or json.loads(done.stdout)["error"] is None


def test_every_status_on_the_page_is_given_somewhere():
    told = {int(status) for row in re.findall(r"^\| ([0-9, ]+) \|", PAGE, re.MULTILINE) for status in row.split(",")}
    sources = [*Path(__file__).parents[2].joinpath("sana_export/serve").glob("*.py")]
    given = {int(status) for file in sources for status in re.findall(r"Refusal\((\d{3}),", file.read_text())}
    assert given - {500} <= told
