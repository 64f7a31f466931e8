"""Work beside other work: its result, its progress, its failure, and its end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medfl.audit.beside import beside
from medfl.errors import DataError


def counted(*, total: int, advance: Callable[[int, int], None]) -> tuple[int, int, int]:
    for done in range(1, total + 1):
        advance(done, total)
    return total, os.getpid(), torch.get_num_threads()


def refused(*, advance: Callable[[int, int], None]) -> None:
    raise DataError("Expected something, found something else.")


def dies(*, advance: Callable[[int, int], None]) -> None:
    os._exit(1)


def endless(*, file: Path, advance: Callable[[int, int], None]) -> None:
    file.write_text(str(os.getpid()), encoding="ascii")
    time.sleep(600)


@pytest.mark.slow
def test_the_result_comes_from_a_process_with_one_thread() -> None:
    seen: list[tuple[int, int]] = []
    with beside(counted, total=3000) as work:
        time.sleep(1)  # more is said meanwhile than anybody reads
        total, process, threads = work.result(advance=lambda *progress: seen.append(progress))
    assert (total, threads) == (3000, 1)
    assert process != os.getpid()
    assert seen[-1] == (3000, 3000)
    assert len(seen) == 300


@pytest.mark.slow
def test_a_failure_is_raised_where_the_result_is_wanted() -> None:
    with beside(refused) as work, pytest.raises(DataError, match="something else"):
        work.result(advance=lambda *_: None)
    with beside(dies) as work, pytest.raises(RuntimeError, match="found none"):
        work.result(advance=lambda *_: None)


@pytest.mark.slow
def test_nothing_goes_on_after_whoever_began_it_has_stopped(tmp_path: Path) -> None:
    file = tmp_path / "process"
    with pytest.raises(KeyboardInterrupt), beside(endless, file=file):
        while not (file.exists() and file.read_text(encoding="ascii")):
            time.sleep(0.05)
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text(encoding="ascii")), 0)
