"""A site's SuperExec: it starts every ClientApp in a fork of a process that imported it before.

Flower would start a command for each message, which imports torch, MONAI and Opacus anew and shows
its token in the list of processes. Here a server process imports them once, runs nothing, and forks
itself for each message; every message still has a process of its own. There is one at a time: the
next begins when the one before has gone, and who works on what nobody waits for is ended. Private
names of Flower's: its SuperExec and what it asks of an executor, the function behind its command
`flwr-clientapp`, and the node's path for tasks.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess

import flwr.supercore.superexec.run_superexec as superexec
import httpx
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import PullTaskMessageRequest, PushTaskOutputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult
from flwr.supernode.runtime.run_clientapp import run_clientapp

from medfl.deployment.flower.log_lines import log_to_parent
from medfl.deployment.processes import shorten_socket_paths

POLL_SECONDS = 0.2
ASK_SECONDS = 2.0
"""How often the node is asked whether a task goes on."""

LEAVE_SECONDS = 6.0
"""How long a process may take to end by itself once its task is over; Flower's takes 5 at most."""

logger = logging.getLogger(__name__)


class ForkedTasks:
    """Flower's executor: one fork for each ClientApp.

    Args:
        preload: Module of the ClientApp, which the fork server imports once.
    """

    def __init__(self, preload: str) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([preload, __name__])
        self._running: list[_RunningTask] = []
        shorten_socket_paths()
        # Now, so that the imports are done when the first message comes.
        forkserver.ensure_running()

    def get_eligible_capacity(
        self,
        supported_task_types: set[TaskType],
        *,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> tuple[set[TaskType], set[str]]:
        """Only ClientApps run at a site, and one at a time: memory is sized for one."""
        del insecure, root_certificates_path
        if self._running:
            return set(), set()
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
        self._running.append(_RunningTask(process=process, node=_node_for(spec)))
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Forget who has ended, and end whose task is over."""
        for task in list(self._running):
            if task.process.is_alive():
                task.end_if_over()
            else:
                self._running.remove(task)
                task.account()

    def close(self) -> None:
        """End every task at once: what it was charged stays charged, and nobody waits for it."""
        for task in self._running:
            task.process.kill()


@dataclass(kw_only=True)
class _RunningTask:
    """The process of one task.

    Attributes:
        node: The node's path for tasks, with this one's token.
    """

    process: ForkServerProcess
    node: RuntimeHttpClient
    _next_question: float = 0.0
    _kill_at: float = math.inf

    def end_if_over(self) -> None:
        """Kill the process if its task is over for the node and it does not end by itself."""
        now = time.monotonic()
        if now > self._kill_at:
            logger.info("A ClientApp's process is being ended: its result is no longer needed.")
            self.process.kill()
        elif now > self._next_question and self._kill_at == math.inf:
            self._next_question = now + ASK_SECONDS
            if self._is_over():
                self._kill_at = now + LEAVE_SECONDS

    def account(self) -> None:
        """Say how the process ended where it was not by itself, to the node as well.

        The node would miss it only after a minute, and not at all before it took its message.
        """
        code = self.process.exitcode
        if code and self._kill_at == math.inf:
            logger.error("A ClientApp's process ended with exit code %d.", code)
            with suppress(httpx.HTTPError):
                self.node.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.FAILED))
        self.node.close()
        self.process.close()

    def _is_over(self) -> bool:
        try:
            # A question that changes nothing; the node knows the token as long as the task goes on.
            self.node.PullTaskMessage(PullTaskMessageRequest(limit=1))
        except httpx.HTTPStatusError as error:
            return error.response.status_code == httpx.codes.UNAUTHORIZED
        except httpx.HTTPError:
            pass  # whether the node is there is not this process' business
        return False


def _node_for(spec: ExecutionSpec) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=spec.runtime_api_address,
        insecure=spec.insecure,
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="medfl"),
            RuntimeTokenHttpInterceptor(spec.token),
        ],
    )


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
