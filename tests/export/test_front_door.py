"""What the command line does when things go wrong or take long, and where a bundle says that it comes from."""

import errno
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sana_reference.checkpoint import load_checkpoint
from sana_runtime.bundle import open_bundle
from sana_runtime.errors import UsageError
from sana_runtime.pipeline import Pipeline

from sana_export.cli import progress
from sana_export.cli.main import main
from sana_export.cli.progress import Reporter
from sana_export.origin import Origin, identity, terms_of

cli = importlib.import_module("sana_export.cli.main")  # the package's own `main` is the function
PROGRAM = "from sana_export.cli.main import main; main()"


def failed_with(monkeypatch, capsys, error, *arguments):
    """Exit code, stdout and stderr of a command in which `error` happens."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(cli.commands, "main", fail)
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return (left.value.code, *capsys.readouterr())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out.png"), 4),
        (PermissionError(errno.EACCES, "Permission denied", "out.png"), 2),
        (MemoryError(), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_the_system_refuses_is_one_line(monkeypatch, capsys, error, code):
    left, out, errors = failed_with(monkeypatch, capsys, error, "generate")
    assert (left, out) == (code, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


def test_programs_are_told_of_a_failure_as_json(monkeypatch, capsys):
    _, out, _ = failed_with(monkeypatch, capsys, UsageError("seed \x1b[31m: no"), "generate", "--json")
    assert json.loads(out) == {"event": "error", "message": "seed \\x1b[31m: no", "exit_code": 2}


def test_a_bug_of_ours_is_not_disguised_as_the_callers(monkeypatch, capsys):
    monkeypatch.setattr(cli.commands, "main", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_nothing_is_silent_for_more_than_two_seconds():
    assert progress.QUIET_SECONDS <= 2
    assert progress.SILENT_SECONDS * (1 + 1 / progress.CHECKS) <= 2


@pytest.mark.parametrize("as_json", [False, True])
def test_a_log_and_a_program_hear_of_a_long_step_again(monkeypatch, capsys, as_json):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.06)
    with Reporter(as_json=as_json) as reporter:
        reporter.step("trace", 0.1, "tracing the transformer")
        time.sleep(0.5)
        reporter.result("done")
    out, err = capsys.readouterr()
    if not as_json:
        assert out == "done\n"
        assert err.count("still tracing the transformer (") >= 2
        return
    first, *again, last = map(json.loads, out.splitlines())
    assert last == {"event": "result"} and err == ""
    assert len(again) >= 2
    for each in again:
        assert each.pop("message").startswith("still tracing the transformer (")
        assert each == {name: value for name, value in first.items() if name != "message"}


LONG_COMMANDS = {
    "verify": (),
    "bench": ("--repeats", "1", "--steps", "1"),
    "generate": ("--steps", "2"),
}


@pytest.mark.parametrize("command", LONG_COMMANDS)
def test_a_command_that_may_take_long_says_so_while_it_works(monkeypatch, capsys, built, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.01)
    bundle = ("a star", "-b", built("sana").path) if command == "generate" else (built("sana").path,)
    with pytest.raises(SystemExit) as left:
        main([command, *map(str, bundle), *LONG_COMMANDS[command]])
    told = capsys.readouterr().err
    assert left.value.code == 0
    assert "still " in told
    if command == "verify":
        assert {f"golden picture {i} of 2" for i in (1, 2)} <= set(re.findall(r"golden picture \d of \d", told))


@pytest.mark.skipif(os.name != "posix", reason="Windows has no pseudo-terminals")
@pytest.mark.parametrize("piped", [True, False])
def test_a_result_stands_on_a_line_of_its_own_beside_the_bar(piped):
    program = """
from sana_export.cli.progress import Reporter
with Reporter() as reporter:
    reporter.step("paint", 0.5, "painting")
    reporter.result("out.png")
"""
    master, slave = os.openpty()
    out = subprocess.PIPE if piped else slave
    with subprocess.Popen([sys.executable, "-c", program], stdout=out, stderr=slave) as reporting:
        os.close(slave)
        shown = drained(master)
        if reporting.stdout is not None:
            assert reporting.stdout.read() == b"out.png\n"
    assert b"painting" in shown
    assert (b"\x1b[2Kout.png\r\n" in shown) is not piped


def drained(terminal):
    """Everything written to a pseudo-terminal until nobody holds its other end."""
    read = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            piece = b""
        if not piece:
            os.close(terminal)
            return read
        read += piece


def heed_interrupts():
    """Undo what a shell does to those it starts in the background, and they to their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGINT to send to another process")
def test_ctrl_c_stops_a_painting_and_leaves_no_file(built, tmp_path):
    arguments = ["generate", "a red circle", "-b", built("sana").path, "--steps", "1000", "--preview", "--json"]
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, preexec_fn=heed_interrupts, **pipes) as painter:
        assert painter.stdout is not None
        while json.loads(painter.stdout.readline()).get("stage") != "paint":
            pass
        painter.send_signal(signal.SIGINT)
        _, errors = painter.communicate(timeout=60)
    assert painter.returncode == 130
    assert errors.strip() == "error: stopped"  # click ends the line of the ^C first
    assert [path.name for path in tmp_path.iterdir()] in ([], ["out.preview.png"])


@pytest.mark.parametrize(("kind", "guidance"), [("sana", 1.0), ("sprint", 4.5)])
def test_a_negative_prompt_that_cannot_take_effect_is_refused(built, kind, guidance):
    with Pipeline.open(built(kind).path) as pipeline, pytest.raises(UsageError, match="negative prompt has no effect"):
        pipeline.generate("a star", negative="blurry", guidance=guidance, steps=1)


def test_kept_parts_are_known_by_the_weights_they_were_made_from(built, tmp_path):
    copy = Path(shutil.copytree(built("sana").folder, tmp_path / "copy"))
    before = identity(load_checkpoint(copy))
    assert identity(load_checkpoint(copy)) == before
    weights = next((copy / "vae").glob("*.safetensors"))
    os.utime(weights, ns=(1, 1))
    assert identity(load_checkpoint(copy)) != before


def test_every_part_names_its_own_origin_and_licence(built, tmp_path):
    ours = Path(shutil.copytree(built("sana").folder, tmp_path / "ours"))
    theirs = Path(shutil.copytree(built("sana").folder / "vae", tmp_path / "dc-ae"))
    (ours / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (ours / "LICENSE").write_text("ours")
    (ours / "LICENSE.md").write_text("ours, in short")
    (theirs / "README.md").write_text("---\nlicense: mit\n---\n")
    (theirs / "LICENSE").write_text("theirs")
    terms = terms_of(Origin(str(ours), autoencoder=str(theirs)).load(), str(ours))
    assert terms.texts == {
        "LICENSES/LICENSE.txt": "ours",
        "LICENSES/LICENSE-2.txt": "ours, in short",
        "LICENSES/LICENSE-3.txt": "theirs",
    }
    named = {part: (source.repository, source.licence) for part, source in terms.sources.items()}
    assert named["transformer"] == named["text_encoder"] == ("ours", "apache-2.0")
    assert named["decoder"] == named["encoder"] == ("dc-ae", "mit")
    assert terms.sources["decoder"].licence_files == ("LICENSES/LICENSE-3.txt",)


def test_the_built_in_model_is_named_as_such():
    sources = terms_of(Origin().load(), "nano").sources
    assert {source.repository for source in sources.values()} == {"nano"}


def test_a_bundle_says_nothing_of_the_machine_it_was_built_on(built):
    manifest = (built("sana").path / "manifest.json").read_text()
    assert open_bundle(built("sana").path).manifest.parts["caption"].source.repository == built("sana").folder.name
    assert str(Path.home()) not in manifest
    assert str(built("sana").folder.parent) not in manifest
