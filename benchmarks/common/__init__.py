"""What the benchmarks share: the time of a call, and its memory, measured in a process of its own."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def extra_mib(function: Callable[[], object]) -> float:
    """Peak memory of this process during a call, less what was resident before; NaN where Linux does not tell."""
    if not FORGET.exists():
        function()
        return math.nan
    before = _kib("VmRSS")
    FORGET.write_text("5")  # the earlier peak
    function()
    return (_kib("VmHWM") - before) / 1024


def printed_by_child(*command: object) -> float | None:
    """The number that this Python prints last, given a script and its arguments; None where memory is not to be had."""
    if not FORGET.exists():
        return None
    child = subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True, text=True)
    return float(child.stdout.split()[-1])


def in_mib(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.0f} MiB"


def _kib(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise KeyError(name)
