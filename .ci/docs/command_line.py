"""The command line as an object of click, as which sphinx-click reads it."""

from __future__ import annotations

from typer.main import get_command

from medfl.cli.app import app

medfl = get_command(app)
