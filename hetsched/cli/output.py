"""Where the commands write."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hetsched.cli.usage import UsageError


def print_json(data: Any) -> None:
    """One JSON document to stdout."""
    print(json.dumps(data))


def write(text: str, out: Path | None) -> None:
    """The text, byte for byte, to a file or else to stdout.

    Raises:
        UsageError: the file cannot be written.
    """
    if out is None:
        sys.stdout.write(text)
        return
    try:
        out.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from error
