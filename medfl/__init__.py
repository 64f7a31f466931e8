"""medfl: patient-level differentially private federated learning for medical imaging."""

__version__ = "0.2.0"
__all__ = ["__version__"]
