"""What a user may have typed wrong."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn


class UsageError(Exception):
    """A command line that asks for nothing that can be done; one line."""


class Parser(argparse.ArgumentParser):
    """Help opens with examples; usage errors are one line and exit 2."""

    def __init__(self, *, examples: Sequence[str], **settings: Any) -> None:
        super().__init__(**settings)
        self._examples = examples

    def format_help(self) -> str:
        examples = "".join(f"  {example}\n" for example in self._examples)
        return f"examples:\n{examples}\n{super().format_help()}"

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


class ShowVersion(argparse.Action):
    """Prints the version that is installed, looked up when it is asked for only."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"hetsched {version('hetsched')}")
        parser.exit()


def require_file(path: Path) -> None:
    """Refuses what is no file.

    Raises:
        UsageError: there is nothing, or a folder.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file in it")
    if not path.is_file():
        raise UsageError(f"there is no file {path}")


def positive(text: str) -> int:
    """An argument that is an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)
