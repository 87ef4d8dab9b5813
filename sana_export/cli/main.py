"""The group of commands, and how every failure becomes one line and an exit code."""

import errno
import importlib
import json
import sys
from typing import Any

import click
from sana_runtime.errors import MemoryLimitError, SanaError, UsageError

from sana_export.cli.progress import escaped

__all__ = ["main"]

COMMANDS = (
    "build",
    "calibrate",
    "generate",
    "plan",
    "engine",
    "verify",
    "sign",
    "evaluate",
    "bench",
    "inspect",
    "info",
    "serve",
    "doctor",
    "cache",
)
INTERRUPTED = 130
FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # what a disk without room answers


class Commands(click.Group):
    """Loads a command's module when the command is named, so that --help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command called `name`."""
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"sana_export.cli.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What each command does, in one line, without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in COMMANDS])


SUMMARIES = {
    "build": "Make a bundle from a checkpoint.",
    "calibrate": "Make an INT8 bundle from an fp32 one.",
    "generate": "Paint pictures from a prompt.",
    "plan": "Say what a build will take, before it starts.",
    "engine": "Build the engines of a bundle, for the cards at hand or for others.",
    "verify": "Check a bundle's bytes and its golden pictures on this machine.",
    "sign": "Sign a bundle, so that others can check who made it.",
    "evaluate": "Measure how well a bundle follows prompts about drawn shapes.",
    "bench": "Time a bundle on this machine, part by part and whole.",
    "inspect": "Show what is in a bundle.",
    "info": "Show how a picture was painted.",
    "serve": "Serve bundles to programs and to the browser.",
    "doctor": "Say what this machine can run, and why.",
    "cache": "Show or clear what is kept between runs.",
}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="sana-export", prog_name="sana-export")
def commands() -> None:
    """From a Sana checkpoint to a picture inside your app, without PyTorch there."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 usage, 3 refused, 4 memory or disk, 5 backend, 6 quality, 75, 130."""
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        result: Any = commands.main(arguments, prog_name="sana-export", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (Exception, KeyboardInterrupt) as error:
        message, code = _explained(error)
        line = escaped(" ".join(message.split()))
        click.echo(f"error: {line}", err=True)
        if "--json" in (sys.argv[1:] if arguments is None else arguments):
            click.echo(json.dumps({"event": "error", "message": line, "exit_code": code}))
        return code


def _explained(error: BaseException) -> tuple[str, int]:
    """What failed, why and what to do, with the exit code; what nobody foresaw is raised again, as our own bug."""
    if isinstance(error, SanaError):
        return str(error), error.exit_code
    if isinstance(error, click.UsageError):
        hint = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
        return f"{error.format_message()}{hint}", UsageError.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return "stopped", INTERRUPTED
    if isinstance(error, MemoryError):
        return "not enough memory; try a smaller size, fewer pictures or a smaller model", MemoryLimitError.exit_code
    if isinstance(error, OSError):
        code = (MemoryLimitError if error.errno in FULL else UsageError).exit_code
        return f"{error.filename or 'the system'}: {error.strerror or error}; choose another place", code
    raise error
