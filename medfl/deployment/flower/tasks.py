"""A site's SuperExec: it starts every ClientApp in a fork of a process that imported it before.

Flower would start a command for each message, which imports torch, MONAI and Opacus anew and shows
its token in the list of processes. Here a server process imports them once, runs nothing, and forks
itself for each message; every message still has a process of its own. Private names of Flower's:
its SuperExec and what it asks of an executor, and the function behind its command `flwr-clientapp`.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess

import flwr.supercore.superexec.run_superexec as superexec
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult
from flwr.supernode.runtime.run_clientapp import run_clientapp

from medfl.deployment.flower.log_lines import log_to_parent

POLL_SECONDS = 0.2

logger = logging.getLogger(__name__)


class ForkedTasks:
    """Flower's executor: one fork for each ClientApp.

    Args:
        preload: Module of the ClientApp, which the fork server imports once.
    """

    def __init__(self, preload: str) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([preload, __name__])
        self._running: list[ForkServerProcess] = []
        # Now, so that the imports are done when the first message comes.
        forkserver.ensure_running()

    def get_eligible_capacity(
        self,
        supported_task_types: set[TaskType],
        *,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> tuple[set[TaskType], set[str]]:
        """Only ClientApps run at a site; the node hands them out one at a time."""
        del insecure, root_certificates_path
        return supported_task_types & {TaskType.CLIENT_APP}, set()

    def wait_for_capacity(
        self,
        task_type: TaskType | None = None,
        *,
        fab_hash: str | None = None,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> None:
        """There is nothing to wait for."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Fork; the task's token goes through a pipe."""
        # A daemon, so that Python's exit does not wait for it.
        process = self._context.Process(target=run_task, args=(spec,), daemon=True)
        process.start()
        self._running.append(process)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Forget who has ended, and say so where it was not by itself."""
        for process in [process for process in self._running if not process.is_alive()]:
            self._running.remove(process)
            if process.exitcode:
                logger.error("A ClientApp's process ended with %d.", process.exitcode)
            process.close()

    def close(self) -> None:
        """End every task at once: what it was charged stays charged, and nobody waits for it."""
        for process in self._running:
            process.kill()


def run_task(spec: ExecutionSpec) -> None:
    """Run one ClientApp in this process, which dies with the one that asked for it."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("Expected a child process, found none.")
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    log_to_parent()
    run_clientapp(
        runtime_api_address=spec.runtime_api_address, token=spec.token, insecure=spec.insecure
    )


def _die_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def run_forked_tasks(address: str, *, secret: bytes, preload: str) -> None:
    """Run what a SuperNode has to do, until a signal comes or the SuperNode is gone.

    Args:
        address: The SuperNode's, on this machine.
        secret: What it wants to be shown.
        preload: Module of the ClientApp.
    """
    tasks = ForkedTasks(preload)
    superexec.get_executor = lambda *_, **__: tasks  # type: ignore[attr-defined]
    _wait_for(address)
    superexec.run_superexec(address, insecure=True, superexec_auth_secret=secret)


def _wait_for(address: str) -> None:
    """Wait until the SuperNode listens; its end would end this process too."""
    host, _, port = address.rpartition(":")
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=POLL_SECONDS).close()
        except OSError:
            time.sleep(POLL_SECONDS)
        else:
            return
