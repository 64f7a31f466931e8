"""What `site_configs/` offers to copy: it loads, holds no secret, and grants no more than needed.

Containers, batch systems and a booted systemd are not there in a test: their files are read, linted
by the tools that exist, and the batch script runs with stand-ins for the commands that it starts.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from medfl.cli.app import app
from medfl.config import load_site
from medfl.config.monitoring import Monitoring
from medfl.data.layouts.rules import LAYOUTS
from medfl.data.layouts.survey import read_cohort
from medfl.deployment.coordinator import monitoring as coordinator
from medfl.deployment.hospital import monitoring as hospital
from medfl.deployment.monitoring.events import Event
from medfl.deployment.monitoring.hook import Hook
from medfl.privacy.ledger.witness_place import SYSTEM_FOLDER

CONFIGS = Path(__file__).resolve().parents[2] / "site_configs"
FILES = sorted(path for path in CONFIGS.rglob("*") if path.is_file())
EXAMPLES = sorted((CONFIGS / "examples").glob("*.toml"))
SERVICES = sorted((CONFIGS / "systemd").glob("*.service"))
HEALTH = [path for path in SERVICES if "health" in path.name]
UNITS = [path for path in SERVICES if path not in HEALTH]
SBATCH = CONFIGS / "slurm" / "medfl-site.sbatch"
COMPOSE = CONFIGS / "compose" / "docker-compose.yaml"
COMPOSE_FILES = sorted(COMPOSE.parent.glob("*.yaml"))

SECRET_KEY = re.compile(r"(?i)passw|secret|token|credential|private.?key|api.?key")
SECRET_VALUE = re.compile(
    r"-----BEGIN|://[^/\s:@]+:[^/\s@]+@|\b[A-Fa-f0-9]{32,}\b|[A-Za-z0-9+/]{40,}={0,2}"
)
# The digest of a file that everybody may see.
PIN = re.compile(r'\bsha256 = "[0-9a-f]{64}"|@sha256:[0-9a-f]{64}')
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
WRITABLE = {
    "medfl-site@.service": {str(SYSTEM_FOLDER), "medfl/%i"},
    "medfl-server.service": {"/var/lib/medfl-server", "medfl-server"},
    "medfl-site-health@.service": {"/var/lib/medfl/%i/ledger"},
    "medfl-server-health.service": set(),
}
SANDBOX = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "CapabilityBoundingSet": "",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallFilter": "@system-service",
    "UMask": "0077",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def leaves(table: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield key, value


def directives(unit: Path, section: str) -> dict[str, list[str]]:
    """Key -> values in a section of a unit; a key may be repeated."""
    found: dict[str, list[str]] = {}
    current = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif current == section and line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def environment(unit: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in directives(unit, "Service")["Environment"])


# Examples


def test_there_is_an_example_for_each_kind_of_hospital() -> None:
    names = ["behind-proxy", "brats-hospital", "cpu-only", "gpu"]
    assert [path.stem for path in EXAMPLES] == names


@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_an_example_needs_its_folders_changed_and_nothing_else(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    for folder in ("/data/brats", "/var/lib/medfl"):
        assert f'"{folder}' in text
        text = text.replace(f'"{folder}', f'"{tmp_path}{folder}')
    file = tmp_path / "site.toml"
    file.write_text(text)
    site = load_site(file)
    rule = LAYOUTS[site.data.layout]
    case = site.data.root / "BraTS2021_00000"
    case.mkdir(parents=True)
    for paths in (*rule.images.values(), rule.masks):
        (site.data.root / f"{paths[0].replace('{case}', case.name)}.nii.gz").touch()
    assert len(read_cohort(site.data).patients) == 1
    assert site.purpose == "hospital"
    assert site.state.is_relative_to(tmp_path / "var/lib/medfl")


def test_examples_can_share_a_machine() -> None:
    sites = [load_site(path) for path in EXAMPLES]
    assert len({site.name for site in sites}) == len(sites)
    assert len({site.state for site in sites}) == len(sites)
    assert not any(SYSTEM_FOLDER.is_relative_to(site.state) for site in sites)


def test_the_example_for_a_gpu_uses_it_and_the_others_do_not() -> None:
    devices = {path.stem: load_site(path).device for path in EXAMPLES}
    assert devices.pop("gpu").startswith("cuda")
    assert set(devices.values()) == {"cpu"}


# Secrets


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_holds_anything_that_looks_like_a_secret(path: Path) -> None:
    assert SECRET_VALUE.findall(PIN.sub("", path.read_text())) == []


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".toml"], ids=name_of)
def test_no_toml_has_a_key_for_a_secret(path: Path) -> None:
    keys = [key for key, _ in leaves(tomllib.loads(path.read_text()))]
    assert [key for key in keys if SECRET_KEY.search(key)] == []


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN OPENSSH" + " PRIVATE KEY-----",
        "https_proxy=http://user:word" + "@proxy:3128",
        "value = '" + "0123456789abcdef" * 2 + "'",
        "b64 = '" + "Zm9vYmFyYmF6" * 4 + "=='",
    ],
)
def test_the_search_for_secrets_finds_them(text: str) -> None:
    assert SECRET_VALUE.search(text)


# systemd


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_a_unit_is_started_again_for_ever(unit: Path) -> None:
    assert directives(unit, "Service")["Restart"] == ["always"]
    assert directives(unit, "Unit")["StartLimitIntervalSec"] == ["0"]


@pytest.mark.parametrize("unit", SERVICES, ids=name_of)
def test_a_unit_calls_nobody_but_its_peer(unit: Path) -> None:
    variables = environment(unit)
    assert variables["FLWR_TELEMETRY_ENABLED"] == "0"
    assert variables["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert int(variables["OMP_NUM_THREADS"]) >= 1


@pytest.mark.parametrize("unit", SERVICES, ids=name_of)
def test_a_unit_may_write_to_its_own_folders_only(unit: Path) -> None:
    service = directives(unit, "Service")
    for key, value in SANDBOX.items():
        assert service[key] == [value], key
    assert service["User"] != ["root"]
    written = [
        folder
        for key in ("ReadWritePaths", "StateDirectory", "CacheDirectory", "LogsDirectory")
        for value in service.get(key, [])
        for folder in value.split()
    ]
    assert set(written) == WRITABLE[unit.name]


def test_a_site_cannot_change_its_own_policy_or_keys() -> None:
    service = directives(CONFIGS / "systemd" / "medfl-site@.service", "Service")
    (command,) = service["ExecStart"]
    (protected,) = service["ReadOnlyPaths"]
    files = [word for word in shlex.split(command)[1:] if word.startswith("/")]
    assert files == ["/var/lib/medfl/%i/site.toml", "/var/lib/medfl/%i/ca.crt"]
    assert set(protected.split()) == {*files, "/var/lib/medfl/%i/keys"}


@pytest.fixture
def installed_units(tmp_path: Path) -> Path:
    """The units in a folder, with a program that is there in the place of medfl."""
    for unit in SERVICES:
        text = unit.read_text().replace("/opt/medfl/bin/medfl", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def analyse(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES, ids=name_of)
def test_systemd_understands_every_line_of_a_unit(unit: Path, installed_units: Path) -> None:
    result = analyse("verify", "--man=no", installed_units / unit.name)
    assert result.returncode == 0, result.stderr
    assert unit.stem not in result.stderr


@needs_systemd
def test_systemd_finds_a_line_that_it_does_not_understand(installed_units: Path) -> None:
    unit = installed_units / UNITS[0].name
    unit.write_text(unit.read_text().replace("NoNewPrivileges=", "NoNewPriviledges="))
    assert unit.stem in analyse("verify", "--man=no", unit).stderr


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES, ids=name_of)
def test_systemd_rates_a_unit_as_little_exposed(unit: Path, installed_units: Path) -> None:
    limit = "--threshold=20"  # of 100; a unit without any protection has 96
    result = analyse("security", "--offline=true", limit, "--no-pager", installed_units / unit.name)
    assert result.returncode == 0, result.stdout[-400:] + result.stderr


# Docker Compose


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def mounts(service: dict[str, Any]) -> dict[str, bool]:
    """Target -> whether it can only be read."""
    return {mount["target"]: mount.get("read_only", False) for mount in service["volumes"]}


def networks_to_the_outside(compose: dict[str, Any], service: str) -> list[str]:
    return [
        network
        for network in compose["services"][service]["networks"]
        if not compose["networks"][network].get("internal", False)
    ]


def linted(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name(tool)
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def checked(path: Path) -> subprocess.CompletedProcess[str]:
    """The file against the schema of the Compose specification."""
    return linted("check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=name_of)
def test_a_compose_file_follows_the_specification(path: Path) -> None:
    result = checked(path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_key_that_compose_does_not_know_is_found(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    text = (COMPOSE.parent / "server.yaml").read_text()
    path.write_text(text.replace("stop_grace_period:", "stop_grace_time:"))
    assert "stop_grace_time" in checked(path).stdout


@pytest.mark.parametrize(
    "path", [path for path in COMPOSE_FILES if path.stem != "gpu"], ids=name_of
)
def test_images_of_others_are_named_by_digest(path: Path) -> None:
    for service in yaml.safe_load(path.read_text())["services"].values():
        assert "build" in service or DIGEST.search(service["image"])


def test_the_gateway_is_healthy_while_it_listens(compose: dict[str, Any]) -> None:
    assert "PORT" in " ".join(compose["services"]["gateway"]["healthcheck"]["test"])


@pytest.mark.parametrize("name", ["docker-compose.yaml", "server.yaml"])
def test_a_container_of_medfl_asks_medfl_for_its_health(name: str) -> None:
    service = filled(COMPOSE.parent / name)["services"]["server" if "server" in name else "site"]
    kind, program, group, command, place, option = service["healthcheck"]["test"]
    assert (kind, program, command, option) == ("CMD", "medfl", "status", "--health")
    assert [group, "start", place] == service["command"][:3]


@pytest.mark.parametrize("unit", HEALTH, ids=name_of)
def test_the_health_of_a_unit_is_looked_at_again_and_again(unit: Path) -> None:
    (line,) = directives(unit, "Service")["ExecStart"]
    (served,) = directives(Path(str(unit).replace("-health", "")), "Service")["ExecStart"]
    assert line.split()[3] == served.split()[3]
    assert line.split()[1:3] == [served.split()[1], "status"]
    assert line.split()[-1] == "--health"
    assert directives(unit, "Service")["Type"] == ["oneshot"]
    timer = unit.with_suffix(".timer")
    assert directives(timer, "Timer")["OnUnitInactiveSec"] == ["5min"]
    assert directives(timer, "Install")["WantedBy"] == ["timers.target"]


def test_two_sites_on_one_machine_share_nothing_but_the_witness() -> None:
    shown = [
        filled(COMPOSE, MEDFL_SITE=name, MEDFL_INSIDE=f"172.30.{n}", MEDFL_STATE=f"/s/{name}")
        for n, name in enumerate(("north", "south"))
    ]
    assert [each["name"] for each in shown] == ["medfl-north", "medfl-south"]
    names = [service["container_name"] for each in shown for service in each["services"].values()]
    assert names == ["north-gateway", "north", "south-gateway", "south"]
    subnets = [each["networks"]["inside"]["ipam"]["config"][0]["subnet"] for each in shown]
    assert len({ipaddress.ip_network(subnet) for subnet in subnets}) == 2
    written = [
        {
            mount["source"]
            for mount in each["services"]["site"]["volumes"]
            if "read_only" not in mount
        }
        for each in shown
    ]
    assert written[0] & written[1] == {str(SYSTEM_FOLDER)}


def filled(path: Path, **changes: str) -> dict[str, Any]:
    """A Compose file with the settings of the sample beside it."""
    sample = path.with_name("server.env" if path.stem == "server" else "site.env").read_text()
    settings = {**dict(re.findall(r"^(\w+)=(.*)$", sample, flags=re.MULTILINE)), **changes}
    text = re.sub(r"\$\{(\w+):\?\}", lambda match: settings[match[1]], path.read_text())
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def test_a_site_in_a_container_is_called_what_its_hospital_is_called() -> None:
    # Without an invitation `medfl site init` names a site after its folder.
    site = filled(COMPOSE)["services"]["site"]
    (state,) = [mount for mount in site["volumes"] if mount["source"] == "/var/lib/medfl/north"]
    assert Path(state["target"]).name == site["container_name"] == site["hostname"] == "north"
    for option in (site["command"][2], site["command"][-1]):
        assert Path(option).parent == Path(state["target"])


def test_the_servers_container_opens_one_port() -> None:
    server = filled(COMPOSE.parent / "server.yaml")["services"]["server"]
    assert server["ports"] == ["8443:8443"]
    assert server["cap_drop"] == ["ALL"] and server["read_only"] is True
    assert mounts(server) == {"/var/lib/medfl-server": False}


def test_the_container_with_data_has_no_network_but_the_gateways(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"gateway", "site"}
    assert networks_to_the_outside(compose, "site") == []
    assert list(compose["services"]["site"]["networks"]) == ["inside"]
    assert compose["services"]["site"]["dns"] == ["127.0.0.1"]


def test_the_container_with_a_network_has_no_data(compose: dict[str, Any]) -> None:
    assert networks_to_the_outside(compose, "gateway") == ["outside"]
    assert mounts(compose["services"]["gateway"]) == {
        "/usr/local/etc/haproxy/haproxy.cfg": True,
    }
    assert "build" not in compose["services"]["gateway"]


def test_images_are_mounted_to_be_read_only(compose: dict[str, Any]) -> None:
    assert mounts(compose["services"]["site"]) == {
        "/data": True,
        "/var/lib/medfl/${MEDFL_SITE:?}": False,
        str(SYSTEM_FOLDER): False,
    }


@pytest.mark.parametrize("service", ["gateway", "site"])
def test_a_container_has_no_privilege_and_no_open_port(
    service: str, compose: dict[str, Any]
) -> None:
    settings = compose["services"][service]
    assert settings["restart"] == "always"
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    openings = {"ports", "privileged", "cap_add", "devices", "network_mode", "pid", "ipc"}
    assert openings & set(settings) == set()


def test_the_server_is_reached_under_its_name_through_the_gateway(compose: dict[str, Any]) -> None:
    site, gateway = compose["services"]["site"], compose["services"]["gateway"]
    address = gateway["networks"]["inside"]["ipv4_address"]
    assert site["extra_hosts"] == ["${MEDFL_SERVER_HOST:?}:" + address]
    command = site["command"]
    server = command[command.index("--server") + 1]
    assert server == "${MEDFL_SERVER_HOST:?}:${MEDFL_SERVER_PORT:?}"
    lines = [line.strip() for line in (CONFIGS / "compose/haproxy.cfg").read_text().splitlines()]
    assert [line for line in lines if line.startswith("bind ")] == [
        f'bind "{address.replace(":?", "")}:${{MEDFL_SERVER_PORT}}"'
    ]
    (upstream,) = [line for line in lines if line.startswith("server ")]
    assert shlex.split(upstream)[2] == "${MEDFL_SERVER_HOST}:${MEDFL_SERVER_PORT}"


def test_the_image_is_built_from_the_bundle_around_it(compose: dict[str, Any]) -> None:
    build = compose["services"]["site"]["build"]
    context = (COMPOSE.parent / build["context"]).resolve()
    assert context == CONFIGS.parent  # where `make bundle` puts wheels and requirements.txt
    assert (context / build["dockerfile"]).is_file()


@pytest.mark.parametrize(
    ("compose_file", "settings"),
    [("docker-compose.yaml", "site.env"), ("server.yaml", "server.env")],
)
def test_every_setting_of_the_containers_stands_in_the_sample(
    compose_file: str, settings: str
) -> None:
    used = set(re.findall(r"\$\{(\w+):\?", (COMPOSE.parent / compose_file).read_text()))
    sample = (COMPOSE.parent / settings).read_text()
    assert used == set(re.findall(r"^(\w+)=", sample, flags=re.MULTILINE))


def test_the_image_takes_nothing_but_wheels_that_match_their_hash() -> None:
    text = (CONFIGS / "compose/Dockerfile").read_text().replace("\\\n", " ")
    steps = [line for line in text.splitlines() if re.match("[A-Z]+ ", line)]
    assert steps[0].startswith("FROM python:3.11-slim") and DIGEST.search(steps[0])
    (install,) = [line for line in steps if "pip install" in line]
    assert {"--no-index", "--require-hashes", "--no-cache-dir"} <= set(install.split())
    assert not [line for line in steps if re.search(r"\b(apt-get|curl|wget|ADD)\b", line)]
    accounts = [line.split()[1] for line in steps if line.startswith("USER ")]
    assert accounts == ["10001"]
    assert [line for line in steps if "--uid 10001" in line]


def test_the_linter_of_images_finds_nothing() -> None:
    found = linted("hadolint", CONFIGS / "compose/Dockerfile")
    assert (found.returncode, found.stdout) == (0, "")


# Monitoring


def test_the_examples_for_prometheus_name_metrics_that_exist() -> None:
    folder = CONFIGS / "monitoring"
    known = {metric.name for metric in (*hospital.METRICS, *coordinator.METRICS)}
    (group,) = yaml.safe_load((folder / "alerts.yaml").read_text())["groups"]
    used = {name for rule in group["rules"] for name in re.findall(r"medfl_[a-z_]+", rule["expr"])}
    assert used <= known
    (job,) = yaml.safe_load((folder / "scrape.yaml").read_text())["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    assert re.fullmatch(r"127\.0\.0\.1:\d+", target)
    assert f'job="{job["job_name"]}"' in group["rules"][0]["expr"]


def test_the_example_of_a_hook_passes_the_event_on(tmp_path: Path) -> None:
    example = CONFIGS / "monitoring" / "hook.sh"
    found = linted("shellcheck", example)
    assert (found.returncode, found.stdout) == (0, "")
    program = tmp_path / "mail"
    program.write_text(f'#!/bin/sh\necho "$2 to $3" > {tmp_path}/said\ncat >> {tmp_path}/said\n')
    program.chmod(0o700)
    hook = tmp_path / "hook"
    hook.write_text(example.read_text())
    hook.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        settings = Monitoring(hook=(str(hook), "oncall@example.org"))
        event = Event(code="disk-low", key="disk-low", details={"free_bytes": 1})
        assert Hook(settings, side="site", name="north").tell(event) == ""
    subject, content = (tmp_path / "said").read_text().splitlines()
    assert subject == f"medfl: disk-low at {os.uname().nodename} to oncall@example.org"
    assert '"free_bytes": 1' in content


# Slurm


def test_the_linter_of_scripts_finds_nothing() -> None:
    found = linted("shellcheck", SBATCH)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_batch_systems_options_stand_before_the_first_command() -> None:
    lines = SBATCH.read_text().splitlines()
    options = [line for line in lines if line.startswith("#SBATCH ")]
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert options == [line for line in lines[:first] if line.startswith("#SBATCH ")]
    assert "#SBATCH --dependency=singleton" in options  # two processes never share a ledger
    assert "#SBATCH --requeue" in options


class Job:
    """The batch script in a folder, with a stand-in for `srun` that does what `body` says."""

    def __init__(self, folder: Path, *, body: str, before: str = "") -> None:
        self.log = folder / "log"
        program = folder / "bin" / "srun"
        program.parent.mkdir()
        note = f'echo "$*" >> "{self.log}"'
        program.write_text("\n".join(["#!/usr/bin/env bash", before, note, body, ""]))
        program.chmod(0o755)
        self.variables = {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "MEDFL_SITE": "/local/medfl/north/site.toml",
            "MEDFL_SERVER": "server:8000",
            "MEDFL_RESTART_SECONDS": "0",
            "SLURM_CPUS_PER_TASK": "3",
        }

    def start(self, **changes: str) -> subprocess.Popen[str]:
        variables = {key: value for key, value in (self.variables | changes).items() if value}
        return subprocess.Popen(
            ["bash", SBATCH],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def commands(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


def test_the_batch_script_starts_the_site(tmp_path: Path) -> None:
    body = 'echo "$OMP_NUM_THREADS $FLWR_TELEMETRY_ENABLED $FLWR_DISABLE_UPDATE_CHECK"'
    job = Job(tmp_path, body=body)
    process = job.start()
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert job.commands() == [
        "--ntasks=1 --cpus-per-task=3 medfl site start /local/medfl/north/site.toml "
        "--server server:8000 --ca /local/medfl/north/ca.crt"
    ]
    assert output.split() == ["3", "0", "1"]


@pytest.mark.parametrize("missing", ["MEDFL_SITE", "MEDFL_SERVER"])
def test_the_batch_script_says_what_it_misses(missing: str, tmp_path: Path) -> None:
    job = Job(tmp_path, body="")
    process = job.start(**{missing: ""})
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert missing in errors
    assert job.commands() == []


def test_the_batch_script_starts_a_failed_site_again(tmp_path: Path) -> None:
    job = Job(tmp_path, body=f'(( $(wc -l < "{tmp_path / "log"}") == 3 ))')
    process = job.start()
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert len(job.commands()) == 3


def test_the_end_of_its_time_ends_the_site_and_starts_no_other(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    before = f"trap 'kill $!; touch \"{ended}\"; exit 143' TERM"
    job = Job(tmp_path, before=before, body="sleep 60 & wait")
    process = job.start()
    try:
        deadline = time.monotonic() + 20
        while not job.commands() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.terminate()
        process.communicate(timeout=30)
        assert ended.exists()
        assert len(job.commands()) == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


# Commands


def subcommands(command: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(command, "commands", {})
    return found


def test_every_command_in_these_files_exists() -> None:
    commands = subcommands(get_command(app))
    mentioned = {
        words
        for path in FILES
        for words in re.findall(r"\bmedfl (site|server|ledger) ([a-z]+)", path.read_text())
    }
    assert {("site", "start"), ("site", "init"), ("server", "start")} <= mentioned
    assert [
        words for words in sorted(mentioned) if words[1] not in subcommands(commands[words[0]])
    ] == []


@pytest.mark.parametrize("unit", SERVICES, ids=name_of)
def test_the_command_of_a_unit_has_its_options(unit: Path) -> None:
    (line,) = directives(unit, "Service")["ExecStart"]
    _, group, name, *words = shlex.split(line)
    command = subcommands(subcommands(get_command(app))[group])[name]
    known = {option for parameter in command.params for option in parameter.opts}
    given = {word for word in words if word.startswith("--")}
    assert given <= known
    required = {p.opts[0] for p in command.params if p.required and p.opts[0].startswith("--")}
    assert required <= given
