"""The ``hetsched`` command, one file a subcommand. What only decides never imports torch."""

from hetsched.cli.entry import main

__all__ = ["main"]
