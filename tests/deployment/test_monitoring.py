"""Events are told once, by a hook that harms nobody, and a page is for this machine only."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from medfl.config.files import load
from medfl.config.monitoring import Monitoring
from medfl.deployment.monitoring import watch as watch_module
from medfl.deployment.monitoring.events import (
    MOST_TOLD,
    Event,
    Happenings,
    Told,
    certificate_expiring,
    disk_low,
)
from medfl.deployment.monitoring.hook import VARIABLE, Hook, require_usable
from medfl.deployment.monitoring.metrics import Metric, Readings, Sample
from medfl.deployment.monitoring.page import Page
from medfl.deployment.monitoring.report import Health
from medfl.deployment.monitoring.watch import TOLD, Watched, monitored
from medfl.deployment.processes import free_port
from medfl.errors import ConfigError

NOTE = """#!/bin/sh
cat > "$(dirname "$0")/heard.$1"
printf '%s' "$MEDFL_EVENT" > "$(dirname "$0")/code"
"""
ROUNDS = Metric(name="medfl_x_rounds_total", help="Rounds.", labels=("run",), kind="counter")
LEFT = Metric(name="medfl_x_left", help="What is left.")


def event(key: str) -> Event:
    return Event(code="site-late", key=key, details={"site": "north", "round": 3})


def now(*keys: str, over: str = "") -> Happenings:
    return Happenings(events=tuple(map(event, keys)), over=frozenset(over.split()))


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a program of an administrator."""
    tmp_path.chmod(0o700)

    def write(text: str, *, mode: int = 0o700) -> Path:
        path = tmp_path / "hook"
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


def hook_of(*words: object, seconds: float = 30.0) -> Hook:
    settings = Monitoring(hook=tuple(map(str, words)), hook_seconds=seconds)
    return Hook(settings, side="site", name="north")


# Settings


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("port = 0", "monitoring.port: .* greater than or equal to 1, found 0"),
        ("port = 70000", "monitoring.port: .* less than or equal to 65535, found 70000"),
        ('port = "9464"', "monitoring.port: .* integer"),
        ('hook = ["notify"]', "monitoring.hook: .* whole path .*found .'notify'"),
        ('hook = "/usr/bin/notify"', "monitoring.hook: "),
        ('hook = ["/bin/x", "a\\u0000b"]', "monitoring.hook: .* NUL"),
        ("hook_seconds = 0.0", "monitoring.hook_seconds: .*greater than 0"),
        ("budget_left = -0.1", "monitoring.budget_left: .*greater than or equal to 0"),
        ("certificate_days = -1", "monitoring.certificate_days: .*greater than or equal to 0"),
        ("disk_gigabytes = -5.0", "monitoring.disk_gigabytes: .*greater than or equal to 0"),
        ("prot = 9464", "monitoring.prot: unknown key"),
    ],
)
def test_a_setting_that_cannot_be_is_one_clear_error(line: str, found: str, tmp_path: Path) -> None:
    from medfl.deployment.coordinator.options import ServerOptions

    (tmp_path / "server.toml").write_text(f"[monitoring]\n{line}\n")
    with pytest.raises(ConfigError, match=f"server.toml: key {found}"):
        ServerOptions.read(tmp_path)
    with pytest.raises(ConfigError, match=found):
        load(tmp_path / "server.toml", ServerOptions)


def test_a_hook_that_can_be_used_is_taken(program: Callable[..., Path], tmp_path: Path) -> None:
    require_usable((), where=tmp_path)
    require_usable((str(program(NOTE)), "argument"), where=tmp_path)


def test_a_hook_that_cannot_be_used_is_refused(
    program: Callable[..., Path], tmp_path: Path
) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(ConfigError) as error:
            require_usable((str(path),), where=tmp_path / "site.toml")
        text = str(error.value)
        assert text.startswith(f"{tmp_path}/site.toml: key monitoring.hook: ")
        assert str(path) in text or str(tmp_path) in text
        return text

    assert "no such file" in refusal(tmp_path / "missing")
    assert "no such file" in refusal(tmp_path)
    assert "can execute" in refusal(program(NOTE, mode=0o600))
    assert "only medfl's account can write, found mode 0722" in refusal(program(NOTE, mode=0o722))
    program(NOTE)
    tmp_path.chmod(0o777)
    assert f"{tmp_path}: expected a folder" in refusal(tmp_path / "hook")


def test_a_hook_behind_a_link_is_judged_where_it_lies(
    program: Callable[..., Path], tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(program(NOTE, mode=0o702))
    with pytest.raises(ConfigError, match="mode 0702"):
        require_usable((str(link),), where=tmp_path)


# The hook


def test_a_hook_hears_json_and_gets_the_code_and_its_arguments(
    program: Callable[..., Path], tmp_path: Path
) -> None:
    assert hook_of(program(NOTE), "$(touch x); *").tell(event("a")) == ""
    heard = json.loads((tmp_path / "heard.$(touch x); *").read_text())  # no shell took it
    assert datetime.fromisoformat(heard.pop("time")).tzinfo is not None
    assert heard == {
        "version": 1,
        "event": "site-late",
        "side": "site",
        "name": "north",
        "details": {"site": "north", "round": 3},
    }
    assert (tmp_path / "code").read_text() == "site-late"
    assert VARIABLE == "MEDFL_EVENT"


def test_a_hook_that_reads_nothing_and_says_much_harms_nobody(
    program: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    text = "#!/bin/sh\nhead -c 3000000 /dev/zero\nhead -c 3000000 /dev/zero >&2\n"
    assert hook_of(program(text)).tell(event("a")) == ""
    assert capfd.readouterr().out == ""


def test_the_failures_of_a_hook_are_told(program: Callable[..., Path], tmp_path: Path) -> None:
    assert hook_of(program("#!/bin/sh\nexit 7\n")).tell(event("a")) == "it ended with 7"
    assert "cannot be started (Exec format" in hook_of(program("no program")).tell(event("a"))
    missing = hook_of(tmp_path / "missing").tell(event("a"))
    assert "cannot be started (No such file" in missing


def test_a_hook_that_takes_too_long_is_ended_with_all_that_it_started(
    program: Callable[..., Path], tmp_path: Path
) -> None:
    text = f"#!/bin/sh\nsleep 900 & echo $! > {tmp_path}/child\nsleep 900\n"
    assert "took more than 2 s" in hook_of(program(text), seconds=2.0).tell(event("a"))
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 20
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_hook_that_runs_does_not_hold_up_the_end(program: Callable[..., Path]) -> None:
    hook = hook_of(program("#!/bin/sh\nsleep 900\n"), seconds=900.0)
    ended: list[str] = []
    thread = threading.Thread(target=lambda: ended.append(hook.tell(event("a"))))
    thread.start()
    while hook._running is None:
        time.sleep(0.01)
    hook.close()
    thread.join(timeout=20)
    assert ended == [""]
    assert hook.tell(event("b")) == ""  # nothing is started any more


# Events


def told_of(told: Told, happenings: Happenings) -> list[str]:
    news = told.news(happenings)
    for each in news:
        told.note(each)
    return [each.key for each in news]


def test_an_event_is_told_once_also_after_a_restart(tmp_path: Path) -> None:
    told = Told(tmp_path / TOLD)
    assert told_of(told, now("a", "b", "a")) == ["a", "b"]
    assert told_of(told, now("a", "b", "c")) == ["c"]
    again = Told(tmp_path / TOLD)
    assert told_of(again, now("a", "b", "c", "d")) == ["d"]
    assert again.began == told.began
    assert (tmp_path / TOLD).stat().st_mode & 0o777 == 0o600


def test_what_is_over_is_news_if_it_comes_back(tmp_path: Path) -> None:
    told = Told(tmp_path / TOLD)
    assert told_of(told, now("a")) == ["a"]
    assert told_of(told, now()) == []
    assert told_of(told, now("a")) == []
    assert told_of(told, now(over="a")) == []
    assert told_of(told, now("a")) == ["a"]


def test_what_was_told_is_bounded_and_a_damaged_file_begins_anew(tmp_path: Path) -> None:
    told = Told(tmp_path / TOLD)
    told._kept = told._kept.model_copy(update={"told": tuple(map(str, range(MOST_TOLD)))})
    assert told_of(told, now("new")) == ["new"]
    kept = json.loads((tmp_path / TOLD).read_text())["told"]
    assert (len(kept), kept[0], kept[-1]) == (MOST_TOLD, "1", "new")
    (tmp_path / TOLD).write_text("{")
    assert told_of(Told(tmp_path / TOLD), now("new")) == ["new"]


def test_a_full_disk_is_told_although_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medfl.deployment.monitoring import events

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(events, "write_atomically", full)
    told = Told(tmp_path / TOLD)
    assert told_of(told, now("a")) == ["a"]
    assert told_of(told, now("a")) == []


def test_a_low_disk_is_over_only_well_above_the_limit() -> None:
    settings = Monitoring(disk_gigabytes=10.0)
    low = disk_low(9_999_999_999, settings=settings)
    assert [each.details for each in low.events] == [{"free_bytes": 9_999_999_999}]
    between = disk_low(11 * 10**9, settings=settings)
    assert (between.events, between.over) == ((), frozenset())
    assert disk_low(13 * 10**9, settings=settings).over == {"disk-low"}
    assert disk_low(None, settings=settings) == Happenings(events=())


def test_a_certificate_is_told_once_for_each_end() -> None:
    settings = Monitoring(certificate_days=30)
    soon = datetime.now(UTC) + timedelta(days=29, hours=1)
    (event,) = certificate_expiring(soon, settings=settings, certificate="server").events
    assert event.details["days_left"] == 29
    later = certificate_expiring(soon + timedelta(days=2), settings=settings, certificate="server")
    assert later.events == ()
    gone = certificate_expiring(soon - timedelta(days=100), settings=settings, certificate="server")
    assert gone.events[0].key != event.key
    assert certificate_expiring(None, settings=settings, certificate="server").events == ()


# The page


@contextmanager
def page_of(
    read: Callable[[], list[Sample]], health: Callable[[], Health] = Health.of
) -> Iterator[Page]:
    with closing(
        Page(free_port(), readings=Readings((ROUNDS, LEFT), read=read), health=health)
    ) as page:
        yield page


def get(page: Page, path: str, method: str = "GET") -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=60) as client:
        return client.request(method, f"http://127.0.0.1:{page.port}{path}")


def test_each_scrape_reads_anew_and_has_help_and_type() -> None:
    count = iter(range(5, 99))

    def read() -> list[Sample]:
        return [
            Sample(metric=ROUNDS, labels=('a "run"\n',), value=next(count)),
            Sample(metric=LEFT, value=2.5),
        ]

    with page_of(read) as page:
        first, second = get(page, "/metrics"), get(page, "/metrics")
    assert first.headers["content-type"].startswith("text/plain; version=")
    assert "# HELP medfl_x_left What is left.\n# TYPE medfl_x_left gauge\n" in first.text
    assert "# TYPE medfl_x_rounds_total counter\n" in first.text
    found = [
        sample.value
        for answer in (first, second)
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.labels == {"run": 'a "run"\n'}
    ]
    assert found == [5.0, 6.0]


def test_health_is_200_or_503_with_the_reasons_as_codes() -> None:
    reasons: list[str] = []
    with page_of(list, health=lambda: Health.of(*reasons)) as page:
        well = get(page, "/health")
        reasons.append("not-connected")
        ill = get(page, "/health")
        other = [get(page, "/").status_code, get(page, "/metrics", "POST").status_code]
    assert (well.status_code, well.json()) == (200, {"status": "ok", "reasons": []})
    assert (ill.status_code, ill.json()) == (
        503,
        {"status": "failing", "reasons": ["not-connected"]},
    )
    assert other == [404, 405]


def test_what_cannot_be_read_shows_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    def broken() -> Any:
        raise ValueError("/data/brats/Patient_Smith")

    with page_of(broken, health=broken) as page:
        answers = [get(page, "/metrics"), get(page, "/health")]
    assert [answer.status_code for answer in answers] == [503, 503]
    seen = capfd.readouterr()
    assert "Smith" not in "".join([*(answer.text for answer in answers), seen.out, seen.err])
    assert answers[1].json()["reasons"] == ["unreadable"]


def test_the_page_is_on_loopback_only() -> None:
    with page_of(list) as page:
        listening = [
            each.laddr
            for each in psutil.Process().net_connections("inet")
            if each.status == psutil.CONN_LISTEN and each.laddr.port == page.port
        ]
    assert [address.ip for address in listening] == ["127.0.0.1"]


def test_a_port_that_is_taken_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"monitoring\.port: .*found {port}: Address already"
        ):
            Page(port, readings=Readings((), read=list), health=Health.of)


def test_a_silent_client_holds_up_neither_others_nor_the_end() -> None:
    with page_of(list) as page, socket.create_connection(("127.0.0.1", page.port)):
        assert get(page, "/health").status_code == 200


# Both beside a process


def watched(happenings: Callable[[], Happenings]) -> Watched[None]:
    return Watched(
        side="site",
        name="north",
        metrics=(LEFT,),
        read=lambda: None,
        health=lambda _: Health.of(),
        samples=lambda _: [Sample(metric=LEFT, value=1.0)],
        events=lambda _, __: happenings(),
    )


def test_nothing_listens_and_nothing_is_kept_without_being_asked(tmp_path: Path) -> None:
    threads, said = threading.active_count(), []

    def never() -> Happenings:
        raise AssertionError

    def listening() -> set[Any]:
        found = psutil.Process().net_connections("inet")
        return {each.laddr for each in found if each.status == psutil.CONN_LISTEN}

    before = listening()
    with monitored(watched(never), settings=Monitoring(), folder=tmp_path, say=said.append):
        assert threading.active_count() == threads
        assert listening() == before
    assert (list(tmp_path.iterdir()), said) == ([], [])


def test_the_hook_is_called_once_however_often_it_is_looked(
    program: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "LOOK_SECONDS", 0.02)
    log = tmp_path / "log"
    command = program(f'#!/bin/sh\necho "$MEDFL_EVENT" >> {log}\nexit 3\n')
    looks, said = [], []

    def look() -> Happenings:
        looks.append(1)
        if len(looks) == 2:
            raise OSError("for a moment")
        return now("a") if len(looks) < 6 else now("a", "b")

    settings = Monitoring(hook=(str(command),))
    with monitored(watched(look), settings=settings, folder=tmp_path, say=said.append):
        deadline = time.monotonic() + 30
        while len(looks) < 12:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert log.read_text().split() == ["site-late", "site-late"]
    failed = "The monitoring hook could not be told of site-late: it ended with 3."
    trouble = "Monitoring cannot look for events now: OSError: for a moment"
    assert said == [failed, trouble, failed]
