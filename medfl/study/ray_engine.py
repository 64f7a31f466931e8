"""The same apps on Flower's simulation runtime, which runs sites in parallel processes."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation

from medfl.config import SiteConfig
from medfl.errors import ConfigError
from medfl.site.client_app import ignore_steps, make_client_app
from medfl.site.state import SiteState, simulated_state


def run_on_ray(server_app: ServerApp, sites: Sequence[SiteConfig], *, run_folder: Path) -> None:
    """Run a ServerApp with one node a site.

    Raises:
        ConfigError: If the extra `medfl-dp[sim]` is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("Expected the extra 'sim' for --engine ray; pip install 'medfl-dp[sim]'.")

    def state_of(context: Context) -> SiteState:
        site = sites[int(context.node_config["partition-id"])]
        return simulated_state(site, run_folder=run_folder)

    places = places_here(sites)
    run_simulation(
        server_app,
        make_client_app(state_of, observer_of=lambda _: ignore_steps),
        num_supernodes=len(sites),
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": places.gpus_each},
            "init_args": {"num_cpus": places.at_once, "include_dashboard": False},
        },
    )


@dataclass(frozen=True, kw_only=True)
class Places:
    """What Ray gives to each site, and how many sites work at once.

    Attributes:
        gpus_each: Part of a GPU that one site gets; 0 where no site asks for one.
        at_once: Sites that work at the same time, and CPUs that Ray may use: it starts a worker
            for each.
        turns: How many sites one place serves one after the other, at most.
    """

    gpus_each: float
    at_once: int
    turns: int

    def __str__(self) -> str:
        gpu = f" and {self.gpus_each:.2g} GPU" if self.gpus_each else ""
        return f"sites at once: {self.at_once}, each with one CPU{gpu}"


def places_here(sites: Sequence[SiteConfig]) -> Places:
    """Share this machine among sites; see `places_of`."""
    return places_of(sites, cpus=os.cpu_count() or 1, gpus=torch.cuda.device_count())


def places_of(sites: Sequence[SiteConfig], *, cpus: int, gpus: int) -> Places:
    """Share a machine among sites.

    Args:
        sites: The sites; Ray gives all of them one CPU.
        cpus: Of the machine.
        gpus: Of the machine.

    Raises:
        ConfigError: If a site asks for a GPU that is not there, or for one by its number, which
            Ray's workers do not see.
    """
    numbered = [site.name for site in sites if site.device.startswith("cuda:")]
    if numbered:
        raise ConfigError(
            "Expected device = 'cuda' for --engine ray, which shares the GPUs itself, found a "
            f"numbered one at {numbered}."
        )
    asking = [site.name for site in sites if site.device == "cuda"]
    if asking and not gpus:
        raise ConfigError(f"Expected a GPU for device = 'cuda' of {asking}, found none.")
    at_once = min(len(sites), cpus)
    gpus_each = min(1.0, gpus / at_once) if asking else 0.0
    return Places(
        gpus_each=gpus_each,
        at_once=at_once,
        turns=math.ceil(len(sites) / at_once),
    )
