"""No library that we load tells its maker that it was loaded, and none leaves files in the user's home."""

import os
import subprocess
import sys

import pytest

REPORTER = """
import os
class Telemetry:
    def __init__(self, *arguments, **named):
        pass
    def send_event(self, *what, **named):
        with open(os.path.join(os.environ["HOME"], "told"), "a") as file:
            print(*what, file=file)
"""


@pytest.fixture
def run_at_home(tmp_path):
    """Runs a program in a home of its own, where OpenVINO's reporter is one that writes down what it is told."""
    for folder, content in (("", REPORTER), ("backend", "backend_ga4 = None\n")):
        package = tmp_path / "packages/openvino_telemetry" / folder
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(content)
    (tmp_path / "home").mkdir()
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "HF_", "ORT_", "DISABLE_", "DO_"))
    }
    environment = {**kept, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path / "packages")}

    def run(program, **more):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env={**environment, **more}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split(), tmp_path / "home"

    return run


def test_openvino_alone_reports_that_it_was_imported(run_at_home):
    """What the next test is about; should this fail one day, there is nothing to hold back any more."""
    _, home = run_at_home("import openvino")
    assert (home / "told").read_text() == "ov import general_import\n"


def test_our_engine_loads_openvino_without_its_reporter(run_at_home, figure):
    program = (
        "import sys, sana_runtime.openvino_session; loaded = 'openvino_telemetry' in sys.modules\n"
        "import openvino_telemetry; print(loaded, 'openvino' in sys.modules, openvino_telemetry.Telemetry.__name__)"
    )
    answer, home = run_at_home(program)
    figure(23, "OpenVINO, which reports each import: held back, and left to other programs as it was")
    assert answer == ["False", "True", "Telemetry"]
    assert list(home.iterdir()) == []


def test_our_engine_loads_onnxruntime_without_a_mark_of_the_machine(run_at_home, figure):
    """Left to itself it keeps an identifier and a queue of events in the home folder, and sends them."""
    _, home = run_at_home("import sana_runtime.onnxruntime_session")
    figure(
        23, f"onnxruntime, which marks the machine and sends what runs: {len(list(home.iterdir()))} files in the home"
    )
    assert list(home.iterdir()) == []


def test_onnxruntime_is_asked_for_silence_on_windows_too(run_at_home):
    program = (
        "import os; os.environ['ORT_DISABLE_TELEMETRY'] = '1'\n"
        "import onnxruntime; asked = []; onnxruntime.disable_telemetry_events = lambda: asked.append(True)\n"
        "import sana_runtime.onnxruntime_session; print(asked)"
    )
    assert run_at_home(program)[0] == ["[True]"]


ASK = """
from sana_reference.checkpoint.hub import fetch
from sana_runtime.errors import CheckpointError
try:
    fetch("nobody/nothing", None, None)
except CheckpointError:
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers
    print(constants.HF_HUB_DISABLE_TELEMETRY, *build_hf_headers()["user-agent"].replace("; ", " ").split())
"""


def test_the_hub_is_asked_for_files_and_told_nothing_of_what_is_installed(run_at_home):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    answer, _ = run_at_home(ASK, HF_HUB_OFFLINE="1")
    assert answer[0] == "True" and not any(part.startswith(("torch/", "agent/")) for part in answer)
