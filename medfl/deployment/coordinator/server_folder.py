"""`ServerFolder`: everything that a coordinator's server keeps, under fixed names.

The folder is private (mode 0700, keys 0600). Hospitals get an invitation, which holds a copy of
`ca.crt`, and nothing else.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Self

from medfl.deployment.addresses import LOOPBACK, joined
from medfl.deployment.admission import AdmittedSite, Bundle
from medfl.deployment.certificates import (
    Certificate,
    read_certificate,
    renew_certificate,
    write_certificates,
)
from medfl.deployment.coordinator.roster import Hospital, Roster
from medfl.deployment.coordinator.run_book import RunBook, named
from medfl.deployment.coordinator.settings import FEDERATION, ServerSettings
from medfl.deployment.invitation import Invitation, new_code
from medfl.deployment.lock import exclusive, is_held
from medfl.durable import write_atomically
from medfl.errors import ConfigError, FederationError
from medfl.secret_files import require_owner_only

FOLDERS = ("state", "jobs", "logs", "flower")
"""What is empty in a new server's folder."""

FOLDER_VARIABLE = "MEDFL_SERVER_FOLDER"
"""Environment variable that names the server's folder to the ServerApp."""

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
# server_learning_rate_schedule = { shape = "cosine", warmup_rounds = 3, final_fraction = 0.1 }
ema_decay = 0.9
min_sites = 3
round_timeout_seconds = 3600.0
"""


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
            self._settings = ServerSettings.read(self.path)
        except (OSError, ValueError):
            raise ConfigError(
                f"{path}: expected a server's folder, found none; make one with "
                "`medfl server init`."
            ) from None

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        host: str,
        port: int,
        listen_port: int | None = None,
        federation: str = FEDERATION,
    ) -> Self:
        """Make a server's folder, with new keys.

        Args:
            path: Must be new or empty.
            host: Name or address under which hospitals reach the server.
            port: TCP port at which they do.
            listen_port: TCP port of this machine, where a router or proxy leads the other one
                to it; the same if None.
            federation: Name of the federation, as hospitals read it in their invitation.

        Raises:
            ConfigError: If there is something already, or host, port or name cannot be.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(
                f"{path}: expected a new or empty folder, found files; they are never replaced."
            )
        settings = ServerSettings.of(
            host=host, port=port, listen_port=listen_port, federation=federation
        )
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        for name in FOLDERS:
            (path / name).mkdir(mode=0o700)
        write_certificates(host=settings.host, **_certificate_paths(path))
        for name in ("superexec.secret", "control.secret"):
            write_atomically(path / name, secrets.token_hex(32).encode(), mode=0o600)
        write_atomically(path / "study.toml", STUDY_TEMPLATE.encode())
        # Last: what was begun and not finished is no server's folder.
        settings.write(path)
        return cls(path)

    @property
    def host(self) -> str:
        """Name or address under which hospitals reach the server."""
        return self._settings.host

    @property
    def port(self) -> int:
        """TCP port at which they do."""
        return self._settings.port

    @property
    def listen_port(self) -> int:
        """TCP port of this machine."""
        return self._settings.listen_port or self.port

    @property
    def federation(self) -> str:
        """Name of the federation."""
        return self._settings.federation

    @property
    def address(self) -> str:
        """Address and port at which hospitals reach the server."""
        return joined(self.host, self.port)

    @property
    def local_address(self) -> str:
        """Address and port at which this machine's own processes reach the server."""
        return joined(LOOPBACK, self.listen_port)

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
        path = self.path / "control.secret"
        require_owner_only(path)
        return path.read_text(encoding="ascii")

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

    @property
    def book(self) -> RunBook:
        """The records of its runs."""
        return RunBook(self.path / "records")

    @property
    def server_lock(self) -> Path:
        """Held by `medfl server start`."""
        return self.path / "server.lock"

    @property
    def start_lock(self) -> Path:
        """Held by `medfl server run` while it takes its run folder."""
        return self.path / "start.lock"

    def require_no_run_in(self, out: Path) -> None:
        """Refuse a run folder that a run under way works in.

        Raises:
            FederationError: If one does; it names it.
        """
        here = [record for record in self.book.under_way() if record.out == out.resolve()]
        if here:
            raise FederationError(
                f"Expected a run folder that no run works in, found {named(here)}; choose another "
                "--out, wait for its end, or stop it with `medfl server stop`."
            )

    def require_running(self) -> None:
        """Refuse to go on without a running server.

        Raises:
            FederationError: If nobody serves.
        """
        if not is_held(self.server_lock):
            raise FederationError(
                f"{self.path}: expected a running server (`medfl server start`), found none."
            )

    def roster(self) -> Roster:
        """Every hospital that was ever invited, admitted or revoked.

        Raises:
            ConfigError: If the list is damaged.
        """
        return Roster.read(self.path / "sites.json")

    def sites(self) -> dict[str, AdmittedSite]:
        """The admitted sites by name.

        Raises:
            ConfigError: If the list is damaged.
        """
        return self.roster().admitted()

    def invite(self, name: str) -> Invitation:
        """Reserve a hospital's name, and say how to join; it makes earlier invitations void.

        Raises:
            ConfigError: If the name is admitted or revoked, or cannot be.
        """
        code = new_code()
        self._change(lambda roster: roster.invite(name, code=code))
        return Invitation.of_this_version(
            federation=self.federation,
            name=name,
            server=self.address,
            code=code,
            certificate=self.authority.read_text(encoding="ascii"),
        )

    def admit(self, bundle: Bundle, *, name: str) -> Hospital:
        """Bind a site's keys to a hospital's name, or follow a rotation of its keys.

        Raises:
            ConfigError: If `Roster.admit` refuses them.
        """
        return self._change(lambda roster: roster.admit(bundle, name=name))[name]

    def revoke(self, name: str, *, reason: str) -> Hospital:
        """Shut a hospital out permanently; its name and its history are kept.

        Raises:
            ConfigError: If `Roster.revoke` refuses it.
        """
        return self._change(lambda roster: roster.revoke(name, reason=reason))[name]

    def read_certificate(self) -> Certificate:
        """The server's certificate as it is on disk.

        Raises:
            ConfigError: If it is missing or damaged.
        """
        return read_certificate(self.certificate, key=self.certificate_key)

    def require_usable_certificate(self) -> Certificate:
        """The server's certificate, if hospitals will accept it.

        Raises:
            ConfigError: If it is damaged, at its end, or another key's.
        """
        certificate = self.read_certificate()
        fix = (
            f"make a new one with `medfl server renew {self.path}`; nothing changes for hospitals."
        )
        if certificate.left.total_seconds() <= 0:
            raise ConfigError(
                f"{self.certificate}: expected a certificate that is still valid, found its end on "
                f"{certificate.end:%Y-%m-%d}: {fix}"
            )
        if not certificate.fits_key:
            raise ConfigError(
                f"{self.certificate}: expected the certificate of {self.certificate_key.name}, "
                f"found another key's: {fix}"
            )
        return certificate

    def renew_certificate(self) -> Certificate:
        """Replace the server's certificate and key under the same authority.

        Raises:
            ConfigError: If the authority is missing, damaged or at its end.
        """
        with exclusive(self.path / "sites.lock", noun="a list of sites"):
            return renew_certificate(host=self.host, **_certificate_paths(self.path))

    def move(
        self, *, host: str | None = None, port: int | None = None, listen_port: int | None = None
    ) -> Self:
        """Give the server another address, and a certificate for it under the same authority.

        What is None stays. A crash on the way leaves the old address and the new certificate;
        moving again mends it.

        Args:
            host: See `create`.
            port: See `create`.
            listen_port: See `create`.

        Returns:
            The folder as it is then.

        Raises:
            ConfigError: If nothing is given, if host or port cannot be, or as `renew_certificate`
                says.
            FederationError: If the server runs: it would go on under the old address.
        """
        if host is None and port is None and listen_port is None:
            raise ConfigError("Expected a new host, port or listening port, found none.")
        settings = ServerSettings.of(
            host=host or self.host,
            port=port or self.port,
            listen_port=listen_port or self._settings.listen_port,
            federation=self.federation,
        )
        with (
            exclusive(self.server_lock, noun="a server's folder"),
            exclusive(self.path / "sites.lock", noun="a list of sites"),
        ):
            renew_certificate(host=settings.host, **_certificate_paths(self.path))
            settings.write(self.path)
        return type(self)(self.path)

    def _change(self, change: Callable[[Roster], Roster]) -> Roster:
        with exclusive(self.path / "sites.lock", noun="a list of sites"):
            roster = change(self.roster())
            roster.write(self.path / "sites.json")
        return roster


def _certificate_paths(path: Path) -> dict[str, Path]:
    return {
        "authority": path / "ca.crt",
        "server": path / "server.crt",
        "authority_key": path / "ca.key",
        "server_key": path / "server.key",
    }
