"""The command line; each command is a few lines over the library."""

from medfl.cli.app import main

__all__ = ["main"]
