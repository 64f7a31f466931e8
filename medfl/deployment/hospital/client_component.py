"""The ClientApp of a deployment, under the name that the thin app gives."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from flwr.app import Context

from medfl.deployment.hospital.participation import require_taking_part
from medfl.deployment.hospital.site_file import load_hospital
from medfl.errors import ConfigError
from medfl.site.audit_log import AuditLog
from medfl.site.client_app import ignore_steps, make_client_app
from medfl.site.state import SiteState, hospital_state

SITE_FILE = "site-file"
"""Key of the node's configuration that holds the path of the site file."""


def _state_of(context: Context) -> SiteState:
    # The file as it is now: an edit counts from the next message on.
    site = load_hospital(Path(str(context.node_config[SITE_FILE])))
    require_taking_part(site.state)
    torch.set_num_threads(site.threads)
    return hospital_state(site)


def _note_refusal(context: Context, kind: str, code: str) -> None:
    with suppress(ConfigError):  # a site file that cannot be read is what the refusal was about
        site = load_hospital(Path(str(context.node_config[SITE_FILE])))
        AuditLog(site.state).note_refusal(code, message=kind)


app = make_client_app(_state_of, observer_of=lambda _: ignore_steps, on_refusal=_note_refusal)
