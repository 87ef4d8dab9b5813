"""What the tests of trust share: how many times to try, where figures go, and small bundles to damage.

`SANA_TRUST` says how much is tried: a share that fits the suite (unset), `full` (`make trust`) or `nightly`.
"""

import importlib.util
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

AMOUNT = os.environ.get("SANA_TRUST", "share")
TESTS = Path(__file__).parents[1]
opened: list[str] | None = None  # paths that Python opens, while somebody listens


def _other_conftest(folder: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"{folder}_fixtures", TESTS / folder / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


runtime_fixtures = _other_conftest("runtime")
sealed_bundle, vouched, mutated = (
    getattr(runtime_fixtures, name) for name in ("sealed_bundle", "the_vouched", "the_mutated")
)
built = _other_conftest("export").built


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if opened is not None and event == "open" and isinstance(arguments[0], str | bytes):
        opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_hear)


@contextmanager
def _listening() -> Iterator[list[str]]:
    global opened
    opened = []
    try:
        yield opened
    finally:
        opened = None


@pytest.fixture(scope="session")
def opened_files() -> Callable[[], Any]:
    """A context that lists every file that Python opens within."""
    return _listening


@pytest.fixture(scope="session")
def times() -> Callable[[int, int, int], int]:
    """Chooses how often something is tried: in the suite, by `make trust`, by `make nightly`."""
    return lambda share, full, nightly: {"share": share, "full": full, "nightly": nightly}[AMOUNT]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[int, str], None]:
    """Reports what a test measured for a promise of docs/security.md."""
    return lambda promise, text: record_property("figure", (promise, text))


@pytest.fixture
def folder(sealed_bundle: Path, tmp_path: Path) -> Path:
    """A small bundle of the test's own, in a folder of its own with a secret beside it."""
    (tmp_path / "secret.data").write_bytes(b"secret, secret, secret, secret, secret, secret, secret, secret, ")
    return Path(shutil.copytree(sealed_bundle, tmp_path / "bundle"))


def _declare(folder: Path, change: Callable[[dict[str, Any]], object] = lambda entries: None) -> None:
    """Edit the manifest without any check, after every size in it was made true; its own digest is right again."""
    file = folder / "manifest.json"
    entries = json.loads(file.read_text())
    for name, entry in entries["files"].items():
        if (folder / name).is_file():
            entry["size"] = (folder / name).stat().st_size
    change(entries)
    file.write_bytes(runtime_fixtures.vouched(entries))


@pytest.fixture(scope="session")
def declare() -> Callable[..., None]:
    """`_declare`."""
    return _declare


def _scrambled(content: bytes, generator: random.Random) -> bytes:
    """The bytes with a few of them changed, left out, repeated or added."""
    mutant = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        at, length = generator.randrange(len(mutant) + 1), generator.choice((0, 1, 1, 1, 2, 4, 16))
        new = generator.choice((generator.randbytes(length), b"", bytes(mutant[at : at + length]) * 2))
        mutant[at : at + length] = new
    return bytes(mutant) or b"\0"


@pytest.fixture(scope="session")
def scrambled() -> Callable[[bytes, random.Random], bytes]:
    """`_scrambled`."""
    return _scrambled


def _killed_while(work: Callable[[], object], generator: random.Random, longest: float) -> None:
    """Run `work` in a child that is killed at a random moment after it began."""
    begun, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os.write(tell, b"!")
            work()
        os._exit(0)
    os.close(tell)
    os.read(begun, 1)
    os.close(begun)
    time.sleep(generator.uniform(0, longest))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.fixture(scope="session")
def killed_while() -> Callable[..., None]:
    """`_killed_while`."""
    return _killed_while


def _killed_again_and_again(
    command: list[str], kills: int, generator: random.Random, longest: float, environment: dict[str, str] | None = None
) -> Iterator[int]:
    """The exit codes of a program's children: `kills` of them killed at a random moment, and one that is let live.

    The program says `ready`, forks a child for each line it is sent, and prints the child's number and its exit code.
    A child that came to its end all the same says how long the next ones may live.
    """
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        for i in range(kills + 1):
            process.stdin.write("go\n")
            process.stdin.flush()
            child, start = int(process.stdout.readline()), time.perf_counter()
            if i < kills:
                time.sleep(generator.uniform(0, longest))
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            code = int(process.stdout.readline())
            assert code in (0, -signal.SIGKILL)
            longest = time.perf_counter() - start if code == 0 else longest
            yield code
        process.stdin.close()


@pytest.fixture(scope="session")
def killed_again_and_again() -> Callable[..., Iterator[int]]:
    """`_killed_again_and_again`."""
    return _killed_again_and_again


def _paced(work: Callable[[], object]) -> float:
    """Seconds that one piece of work takes here."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.fixture(scope="session")
def paced() -> Callable[..., float]:
    """`_paced`."""
    return _paced


class Failing:
    """Lets the Nth call of the system fail, counting those of one thread of work."""

    CALLS = ("open", "fsync", "rename", "replace", "mkdir", "scandir", "unlink", "rmdir", "lstat", "stat")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int, code: int) -> None:
        self.calls, self.fail_at, self.code = 0, fail_at, code
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))
        monkeypatch.setattr(io, "open", self.counted(io.open))
        monkeypatch.setattr("builtins.open", self.counted(open))

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == self.fail_at:
                raise OSError(self.code, os.strerror(self.code))
            return function(*arguments, **named)

        return call


@pytest.fixture(scope="session")
def failing_calls() -> type[Failing]:
    """`Failing`."""
    return Failing


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print every figure by promise, and keep those of a full run."""
    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, ())]
    figures = sorted(
        (promise, text, report.nodeid)
        for report in reports
        for name, (promise, text) in (entry for entry in report.user_properties if entry[0] == "figure")
    )
    for promise, text, _ in figures:
        terminalreporter.write_line(f"promise {promise:2}: {text}")
    if AMOUNT != "share" and figures:
        rows = [{"promise": promise, "figure": text, "test": test} for promise, text, test in figures]
        target = TESTS.parent / "out" / "trust.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(rows, indent=1) + "\n")
