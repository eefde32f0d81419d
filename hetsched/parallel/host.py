"""Which ranks share a host."""

from __future__ import annotations

import socket
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def this_host() -> str:
    """Equal on two ranks whose processes can share memory: the host's name, and what tells it from others so named."""
    boot = _BOOT.read_text(encoding="ascii").strip() if _BOOT.exists() else ""
    return f"{socket.gethostname()} {boot}"
