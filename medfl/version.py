"""The version of medfl: of everything here, and of the app that servers ship."""

__version__ = "0.2.0"
