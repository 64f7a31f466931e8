"""`Invitation`: one text file that tells a hospital how to join a federation.

It holds nothing secret, and nobody can join with it: a hospital takes part once the coordinator has
admitted the public keys in its `site.pub`. The code only says which invitation a `site.pub`
answers, so that two hospitals' files are not mixed up. The certificate in it decides whom the
hospital takes for the server, so both sides compare its fingerprint by telephone.
"""

from __future__ import annotations

import secrets
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import AfterValidator, Field

from medfl.config.files import Section, load
from medfl.config.site import Name
from medfl.deployment.addresses import ADDRESS
from medfl.deployment.fingerprint import fingerprint
from medfl.deployment.thin_app import THIN_APP
from medfl.errors import ConfigError
from medfl.version import __version__

FederationName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,59}$")]

# Without letters and digits that are read as others.
_LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"
_CODE_LETTERS = 8

_TEMPLATE = """\
# Invitation of one hospital to a federation. Nothing in it is secret, and it lets nobody in: the
# coordinator admits the keys in the hospital's site.pub, after comparing their fingerprint by
# telephone. Compare that of the certificate below as well.

federation = "{federation}"
# The hospital's name, as its site file has to say it.
name = "{name}"
# The one address to which the hospital connects.
server = "{server}"
# Which invitation a site.pub answers; of one use.
code = "{code}"

# The hospital's installation has to be the same: medfl, flwr up to the minor version, and the app
# that the server ships, which holds no code and follows from the version of medfl.
medfl = "{medfl}"
flower = "{flower}"
app = "{app}"

# The only authority that the hospital trusts for the server (ca.crt): {fingerprint}
certificate = \"\"\"
{certificate}\"\"\"
"""


def _certificate(text: str) -> str:
    try:
        x509.load_pem_x509_certificate(text.encode())
    except ValueError:
        raise ValueError("expected a certificate as PEM") from None
    return text


class Invitation(Section):
    """What a coordinator tells a hospital.

    Attributes:
        federation: Name of the federation.
        name: Name that is reserved for the hospital.
        server: ``HOST:PORT``.
        code: Code of this invitation.
        medfl: The coordinator's version of medfl.
        flower: Major and minor version of Flower.
        app: SHA-256 of the app that the server ships, as hexadecimal text.
        certificate: The authority's certificate as PEM.
    """

    federation: FederationName
    name: Name
    server: Annotated[str, Field(pattern=f"^{ADDRESS}$")]
    code: Annotated[str, Field(pattern=r"^[A-Z0-9-]{4,20}$")]
    medfl: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,40}$")]
    flower: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+$")]
    app: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    certificate: Annotated[str, AfterValidator(_certificate)]

    @classmethod
    def of_this_version(
        cls, *, federation: str, name: str, server: str, code: str, certificate: str
    ) -> Self:
        """An invitation to servers and sites of the installed version; see the attributes."""
        return cls(
            federation=federation,
            name=name,
            server=server,
            code=code,
            medfl=__version__,
            flower=flower_version(),
            app=THIN_APP.digest,
            certificate=certificate,
        )

    @property
    def file_name(self) -> str:
        """Under which name it is sent."""
        return f"{self.name}.invite"

    @property
    def text(self) -> str:
        """The content of its file."""
        return _TEMPLATE.format(**self.model_dump(), fingerprint=self.authority_fingerprint)

    @property
    def authority_fingerprint(self) -> str:
        """Of the authority's certificate, to be compared by telephone."""
        certificate = x509.load_pem_x509_certificate(self.certificate.encode())
        return fingerprint(certificate.public_bytes(Encoding.DER))

    def require_same_versions(self) -> None:
        """Refuse an installation that the coordinator's server could not work with.

        Raises:
            ConfigError: If a version differs.
        """
        here = {"medfl": __version__, "flower": flower_version(), "app": THIN_APP.digest}
        other = [key for key, value in here.items() if value != getattr(self, key)]
        if other:
            raise ConfigError(
                "Expected the coordinator's versions ("
                + ", ".join(f"{key} {getattr(self, key)[:12]}" for key in other)
                + "), found "
                + ", ".join(f"{key} {here[key][:12]}" for key in other)
                + ": install the same version of medfl, or ask for a new invitation."
            )


def read_invitation(path: Path) -> Invitation:
    """Read an invitation.

    Raises:
        ConfigError: If it cannot be read or is none.
    """
    return load(path, Invitation)


def new_code() -> str:
    """A code that no earlier invitation has: it says which invitation is meant, no more."""
    letters = "".join(secrets.choice(_LETTERS) for _ in range(_CODE_LETTERS))
    return f"{letters[:4]}-{letters[4:]}"


def flower_version() -> str:
    """Major and minor version of the installed Flower, in which server and sites must agree."""
    return ".".join(version("flwr").split(".")[:2])
