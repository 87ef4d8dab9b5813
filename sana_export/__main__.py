"""`python -m sana_export` is `sana-export`, for programs that start it and do not know where it is installed."""

from sana_export.cli import main

main()
