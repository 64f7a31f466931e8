"""medfl: patient-level differentially private federated learning for medical imaging."""

import os

# Flower reads these when it is first imported, and would otherwise call its makers' servers from
# inside a hospital. Whoever wants that can set them before.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

__version__ = "0.2.0"
__all__ = ["__version__"]
