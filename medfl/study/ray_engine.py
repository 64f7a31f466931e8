"""The same apps on Flower's simulation runtime, which runs sites in parallel processes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

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
        ConfigError: If the extra `medfl[sim]` is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("Expected the extra 'sim' for --engine ray; pip install 'medfl[sim]'.")

    def state_of(context: Context) -> SiteState:
        site = sites[int(context.node_config["partition-id"])]
        return simulated_state(site, run_folder=run_folder)

    threads = max(site.threads for site in sites)
    # Ray starts a worker for every CPU it may use: no more than there are sites to work for.
    cpus = max(threads, min(os.cpu_count() or 1, threads * len(sites)))
    run_simulation(
        server_app,
        make_client_app(state_of, observer_of=lambda _: ignore_steps),
        num_supernodes=len(sites),
        backend_config={
            "client_resources": {"num_cpus": threads, "num_gpus": 0.0},
            "init_args": {"num_cpus": cpus, "include_dashboard": False},
        },
    )
