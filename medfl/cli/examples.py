"""An example of every command, shown at the end of its help."""

from __future__ import annotations

from collections.abc import Mapping

import typer

EXAMPLES: Mapping[str, str] = {
    "phantom": "hospitals --patients 12 10 8 6",
    "check": "north.toml --study study.toml",
    "pretrain": "study.toml --out start.safetensors",
    "starts": "",
    "plan": "study.toml north.toml south.toml --picture plan.png",
    "simulate": "study.toml north.toml south.toml --out runs/first",
    "study run": "pipelines/grids/demo_who_gains.toml --out runs/who-gains",
    "report": "runs/first",
    "documents": "runs/first --language en",
    "predict": "images --model runs/first --out masks",
    "evaluate": "masks images --out scores",
    "adapt": "north.toml runs/first/checkpoints/final.safetensors -o state/own.safetensors",
    "audit": "runs/first north.toml south.toml",
    "dashboard": "runs/first",
    "budget": "north.toml",
    "cache fill": "north.toml study.toml",
    "cache size": "north.toml",
    "cache clear": "north.toml",
    "sites from-fets": "FeTS2022 --partition partitioning_1.csv --out sites",
    "import lgg": "kaggle_3m lgg",
    "export bundle": "runs/first --out bundle",
    "ledger init": "north.toml",
    "ledger verify": "north.toml",
    "ledger export": "north.toml -o north-ledger.json",
    "ledger check-export": "north-ledger.json --key site.pub",
    "ledger acknowledge": "north.toml --reason 'disk replaced, restored from Monday'",
    "site init": "/var/lib/medfl/north --invite north.invite",
    "site rotate": "/var/lib/medfl/north",
    "site start": "site.toml --server medfl.example.org:8443 --ca ca.crt",
    "site status": "site.toml --json",
    "site pause": "site.toml",
    "site resume": "site.toml",
    "site leave": "site.toml --reason 'the study is over'",
    "site clean": "site.toml --older-than 90",
    "site backup": "site.toml -o north.backup",
    "site restore": "north.backup --to /var/lib/medfl/north",
    "rehearse": "--hospitals 4 --keep rehearsal",
    "server init": "/var/lib/medfl-server --host medfl.example.org",
    "server invite": "/var/lib/medfl-server north -o north.invite",
    "server admit": "/var/lib/medfl-server site.pub north",
    "server revoke": "/var/lib/medfl-server north --reason 'left the study'",
    "server renew": "/var/lib/medfl-server",
    "server move": "/var/lib/medfl-server --host new.example.org --port 443 --listen-port 8443",
    "server backup": "/var/lib/medfl-server -o server.backup",
    "server restore": "server.backup --to /var/lib/medfl-server",
    "server start": "/var/lib/medfl-server",
    "server run": "/var/lib/medfl-server study.toml --out runs/first --detach",
    "server runs": "/var/lib/medfl-server",
    "server stop": "/var/lib/medfl-server first-study-20260102",
    "server logs": "/var/lib/medfl-server first-study-20260102 --follow",
    "server status": "/var/lib/medfl-server --run runs/first --watch",
    "overlap key": "overlap.key",
    "overlap tokens": "north.toml --key overlap.key -o north.json",
    "overlap compare": "north.json south.json",
}
"""What follows ``medfl`` and the command's name."""


def add_examples(app: typer.Typer, *, above: str = "") -> None:
    """Give every command below an app its example.

    Args:
        app: The app, with all of its commands.
        above: Names of the groups that it is in.

    Raises:
        KeyError: If a command has none.
    """
    for command in app.registered_commands:
        name = command.name or (command.callback.__name__ if command.callback else "")
        path = f"{above} {name.replace('_', '-')}".strip()
        command.epilog = f"Example: `medfl {path} {EXAMPLES[path]}".rstrip() + "`"
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_examples(group.typer_instance, above=f"{above} {group.name}".strip())
