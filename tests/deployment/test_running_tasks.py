"""Who works on what nobody waits for is ended, and who ended by itself is missed at once."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from medfl.deployment.flower import tasks
from medfl.deployment.flower.tasks import ForkedTasks, _RunningTask


class Process:
    """Stands for a process."""

    def __init__(self) -> None:
        self.exitcode: int | None = None

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        self.exitcode = -9

    def close(self) -> None:
        pass


class Path:
    """Stands for the node's path for tasks."""

    def __init__(self) -> None:
        self.answer: Exception | None = None
        self.told: list[str] = []

    def PullTaskMessage(self, request: Any) -> None:  # noqa: N802, ARG002
        if self.answer is not None:
            raise self.answer

    def PushTaskOutput(self, request: Any) -> None:  # noqa: N802
        self.told.append(request.sub_status)
        raise httpx.ConnectError("away")

    def close(self) -> None:
        pass


def status(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://node")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(code))


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> ForkedTasks:
    """A runner with one task, and a clock of its own."""
    monkeypatch.setattr(tasks.forkserver, "ensure_running", lambda: None)
    runner = ForkedTasks("medfl")
    task = _RunningTask(process=Process(), node=Path())  # type: ignore[arg-type]
    runner._running.append(task)
    return runner


@pytest.fixture
def wait(running: ForkedTasks, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets time pass, as the runner's loop sees it."""
    clock = [100.0]
    monkeypatch.setattr(tasks.time, "monotonic", lambda: clock[0])

    def pass_time(seconds: float) -> None:
        until = clock[0] + seconds
        while clock[0] < until:
            clock[0] += 0.5
            running.reconcile()

    return pass_time


def only(runner: ForkedTasks) -> tuple[Any, Any]:
    (task,) = runner._running
    return task.process, task.node


@pytest.mark.parametrize("answer", [None, status(503), httpx.ConnectError("away")])
def test_a_task_goes_on_as_long_as_the_node_knows_it_or_says_nothing(
    answer: Exception | None, running: ForkedTasks, wait: Any
) -> None:
    process, node = only(running)
    node.answer = answer
    wait(60)
    assert process.is_alive()


def test_a_task_that_the_node_forgot_may_end_by_itself_and_is_ended_then(
    running: ForkedTasks, wait: Any, caplog: pytest.LogCaptureFixture
) -> None:
    process, node = only(running)
    node.answer = status(401)
    wait(tasks.LEAVE_SECONDS - 1)
    assert process.is_alive()
    wait(tasks.ASK_SECONDS + 3)
    assert not process.is_alive()
    assert running._running == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert node.told == []


def test_the_next_task_waits_for_the_process_of_the_one_before(
    running: ForkedTasks, wait: Any
) -> None:
    process, _ = only(running)
    wanted = {"flwr-clientapp", "flwr-serverapp"}
    assert running.get_eligible_capacity(wanted) == (set(), set())  # type: ignore[arg-type]
    process.exitcode = 0
    wait(1)
    capacity, _ = running.get_eligible_capacity(wanted)  # type: ignore[arg-type]
    assert capacity == {tasks.TaskType.CLIENT_APP}


@pytest.mark.parametrize(("code", "told"), [(-9, ["failed"]), (1, ["failed"]), (0, [])])
def test_the_node_hears_at_once_of_a_process_that_ended_badly(
    code: int, told: list[str], running: ForkedTasks, wait: Any
) -> None:
    process, node = only(running)
    process.exitcode = code
    wait(1)
    assert node.told == told
    assert running._running == []
