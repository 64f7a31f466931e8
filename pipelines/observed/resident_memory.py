"""Resident memory of a process, as Linux counts it; nothing is known of it elsewhere."""

from __future__ import annotations

from pathlib import Path

_NOW, _PEAK = "VmRSS", "VmHWM"


def resident_bytes(pid: int) -> int | None:
    """What a process holds now."""
    return _field(pid, _NOW)


def peak_bytes(pid: int) -> int | None:
    """The most that a process held since `forget_peak`."""
    return _field(pid, _PEAK)


def forget_peak(pid: int) -> None:
    """Begin a new peak; see proc(5), /proc/pid/clear_refs."""
    path = Path(f"/proc/{pid}/clear_refs")
    if path.exists():
        path.write_text("5")


def _field(pid: int, name: str) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith(name + ":")]
    return 1024 * int(found[0][1]) if found else None
