"""Install the package without extras in a fresh environment, and paint there with a bundle that was built elsewhere.

    python tests/install_check.py BUNDLE

Needs a package index and some minutes, so it is no part of the test suite: `make install-check` runs it.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_SOURCES = shutil.ignore_patterns(
    ".*", "out", "build", "dist", "*.egg-info", "__pycache__", "tests", "bench", "docs"
)
FOR_BUILDING = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "triton", "diffusers", "safetensors")
PROMPT = "a red circle above a blue square"
PROGRAM = """
import importlib.util, sys
from sana_runtime import Pipeline
with Pipeline.open("bundle") as pipeline:
    pipeline.generate(sys.argv[1], seed=7, steps=4).save("embedded.png")
print(*[name for name in sys.argv[2:] if importlib.util.find_spec(name)])
"""


def call(*command: object, cwd: Path, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in an environment without traces of this one, and see that it exits as it should."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "PIP_CONSTRAINT"}
    homes = {name: str(cwd / "home") for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME")}
    environment = {**inherited, **homes, "PYTHONNOUSERSITE": "1"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == exit_code, (command, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return done


def installed(folder: Path) -> Path:
    """The folder of commands of a fresh environment that holds the package and what it requires, nothing else."""
    source = shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCES)
    venv.create(folder / "venv", with_pip=True)
    commands = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    call(commands / "python", "-m", "pip", "install", "-q", "-c", "constraints.txt", ".", cwd=source)
    call(commands / "python", "-m", "pip", "check", cwd=folder)
    shutil.rmtree(source)
    return commands


def main(bundle: Path) -> None:
    """Run every check; an AssertionError shows the first that fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(bundle, folder / "bundle")
        commands = installed(folder)
        sana_export = commands / "sana-export"
        present = call(commands / "python", "-c", PROGRAM, PROMPT, *FOR_BUILDING, cwd=folder).stdout.split()
        assert not present, f"these were installed without any extra: {present}"
        options = ("-b", "bundle", "-o", "typed.png", "--seed", 7, "--steps", 4)
        call(sana_export, "generate", PROMPT, *options, cwd=folder)
        assert (folder / "typed.png").read_bytes() == (folder / "embedded.png").read_bytes()
        verified = json.loads(call(sana_export, "verify", "bundle", "--json", cwd=folder).stdout.splitlines()[-1])
        assert verified["replayed"] >= 1, verified
        assert "sana-export[build]" in call(sana_export, "build", cwd=folder, exit_code=5).stderr
        packages = json.loads(call(commands / "python", "-m", "pip", "list", "--format", "json", cwd=folder).stdout)
        print(f"painted and verified ({verified['psnr']:.1f} dB) with {len(packages)} packages, none for building")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
