"""The command line: parse, call one function, print one result. Commands load when they are called."""

from sana_export.cli.main import main

__all__ = ["main"]
