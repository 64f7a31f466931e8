"""`ServerFolder`: everything that a coordinator's server keeps, under fixed names.

The folder is private (mode 0700, keys 0600). Hospitals get a copy of `ca.crt` and nothing else.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, TypeAdapter, ValidationError

from medfl.config.files import Section
from medfl.config.site import Name
from medfl.durable import write_atomically
from medfl.errors import ConfigError
from medfl.federation.deployment.admission import AdmittedSite
from medfl.federation.deployment.certificates import write_certificates
from medfl.federation.deployment.lock import exclusive

LOOPBACK = "127.0.0.1"

STUDY_TEMPLATE = """\
# What is proposed to every hospital. All of it is public; each site decides by its own policy.
id = "first-study"
seed = 1

[input]
modalities = ["t1n", "t1c", "t2f"]
regions = ["WT"]
spacing = "native"               # or millimetres per voxel, for example [1.0, 1.0, 1.0]
crop_size = [64, 64, 16]
crops_per_patient = 2

[network]                        # of monai.networks.nets
name = "SegResNet"
arguments = { init_filters = 8, blocks_down = [1, 2, 2], blocks_up = [1, 1] }

[privacy]                        # `medfl plan` shows what this means for each hospital
epsilon = 8.0
sampling_prob = 0.3
clip_norm = 1.0

[training]
rounds = 60
local_steps = 1
optimizer = "sgd"
learning_rate = 1.0

[aggregation]
strategy = "fedadam"
server_learning_rate = 4e-3
ema_decay = 0.9
min_sites = 3
round_timeout_seconds = 3600.0
"""


class _Settings(Section):
    host: str
    port: Annotated[int, Field(ge=1, le=65535)]


class ServerFolder:
    """The files of one server.

    Args:
        path: A folder that `create` has made.

    Raises:
        ConfigError: If it is no such folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        try:
            text = (self.path / "server.json").read_text(encoding="utf-8")
            self._settings = _Settings.model_validate_json(text)
        except (OSError, ValueError):
            raise ConfigError(
                f"{path}: expected a server's folder, found none; make one with "
                "`medfl server init`."
            ) from None

    @classmethod
    def create(cls, path: Path, *, host: str, port: int) -> Self:
        """Make a server's folder, with new keys.

        Args:
            path: Must be new or empty.
            host: Name or address under which hospitals reach the server.
            port: TCP port.

        Raises:
            ConfigError: If there is something already, or host or port cannot be.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(
                f"{path}: expected a new or empty folder, found files; they are never replaced."
            )
        try:
            settings = _Settings(host=host, port=port)
        except ValidationError:
            raise ConfigError(f"Expected a port from 1 to 65535, found {port}.") from None
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        for name in ("state", "jobs", "logs", "flower"):
            (path / name).mkdir(mode=0o700)
        write_certificates(
            host=host,
            authority=path / "ca.crt",
            server=path / "server.crt",
            authority_key=path / "ca.key",
            server_key=path / "server.key",
        )
        for name in ("superexec.secret", "control.secret"):
            write_atomically(path / name, secrets.token_hex(32).encode(), mode=0o600)
        write_atomically(path / "study.toml", STUDY_TEMPLATE.encode())
        # Last: what was begun and not finished is no server's folder.
        write_atomically(path / "server.json", settings.model_dump_json(indent=2).encode())
        return cls(path)

    @property
    def host(self) -> str:
        """Name or address under which hospitals reach the server."""
        return self._settings.host

    @property
    def port(self) -> int:
        """TCP port."""
        return self._settings.port

    @property
    def listening_address(self) -> str:
        """Where the server listens: on this machine only if it is called so, else everywhere."""
        return LOOPBACK if self.host in ("localhost", LOOPBACK) else "0.0.0.0"  # noqa: S104

    @property
    def local_address(self) -> str:
        """Address and port at which this machine's own processes reach the server."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def authority(self) -> Path:
        """The certificate that hospitals trust."""
        return self.path / "ca.crt"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.path / "server.crt"

    @property
    def certificate_key(self) -> Path:
        """Its key."""
        return self.path / "server.key"

    @property
    def superexec_secret(self) -> Path:
        """Shared by Flower's two server processes; without it nobody gets a ServerApp's token."""
        return self.path / "superexec.secret"

    @property
    def control_secret(self) -> str:
        """What a request to the control path has to bring."""
        return (self.path / "control.secret").read_text(encoding="ascii")

    @property
    def database(self) -> Path:
        """Flower's database, so that a run survives a restart."""
        return self.path / "state" / "flower.db"

    @property
    def jobs(self) -> Path:
        """Where a ServerApp finds its work."""
        return self.path / "jobs"

    @property
    def logs(self) -> Path:
        """Output of Flower's processes."""
        return self.path / "logs"

    @property
    def flower_home(self) -> Path:
        """Where Flower installs the app."""
        return self.path / "flower"

    def sites(self) -> dict[str, AdmittedSite]:
        """The admitted sites by name.

        Raises:
            ConfigError: If the list is damaged.
        """
        path = self.path / "sites.json"
        if not path.exists():
            return {}
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return {name: AdmittedSite(**site) for name, site in values.items()}
        except (AttributeError, TypeError, ValueError):
            raise ConfigError(f"{path}: expected admitted sites, found a damaged file.") from None

    def admit(self, site: AdmittedSite, *, name: str) -> None:
        """Bind a site's keys to a hospital's name.

        Raises:
            ConfigError: If the name or one of the keys is taken, or the name cannot be.
        """
        _require_name(name)
        with exclusive(self.path / "sites.lock", noun="a list of sites"):
            sites = self.sites()
            _require_new(site, name=name, known=sites)
            listed = {**sites, name: site}
            text = json.dumps({key: asdict(listed[key]) for key in sorted(listed)}, indent=2)
            write_atomically(self.path / "sites.json", (text + "\n").encode(), mode=0o600)


def _require_name(name: str) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise ConfigError(
            "Expected a site's name of 1 to 40 letters, digits, '-' or '_', starting with no sign, "
            f"found {name!r}."
        ) from None


def _require_new(site: AdmittedSite, *, name: str, known: Mapping[str, AdmittedSite]) -> None:
    if name in known:
        raise ConfigError(f"Expected a new name, found {name!r}, which is admitted already.")
    for other, keys in known.items():
        if site.node_key == keys.node_key or site.event_key == keys.event_key:
            raise ConfigError(
                f"Expected keys of its own for {name!r}, found one of {other!r}: every hospital "
                "makes its keys with `medfl site init`."
            )
