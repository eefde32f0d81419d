"""What a user may have typed wrong."""

from __future__ import annotations

import argparse
from typing import NoReturn


class UsageError(Exception):
    """A command line that asks for nothing that can be done; one line."""


class Parser(argparse.ArgumentParser):
    """Usage errors are one line and exit 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def positive(text: str) -> int:
    """An argument that is an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number
