"""Flower's lines in the log of a program that uses medfl."""

from __future__ import annotations

import logging


def quiet_flower() -> None:
    """Give Flower's lines the level of all others; a round would else print some of its own.

    Flower sets its own level when it is imported, so this comes after that.
    """
    logging.getLogger("flwr").setLevel(logging.getLogger().level)
