"""Opacus' formulas without Opacus' package are the very same ones."""

from __future__ import annotations

import subprocess
import sys

from opacus.accountants.analysis import rdp

from medfl.privacy.accounting.opacus_formulas import renyi_formulas


def test_they_are_read_from_the_file_of_the_installed_opacus() -> None:
    assert renyi_formulas().__file__ == rdp.__file__
    assert renyi_formulas() is renyi_formulas()


def test_they_give_the_same_divergence_to_the_last_bit() -> None:
    for order in (1.5, 2.0, 7.3, 64.0):
        arguments = {"q": 0.3, "noise_multiplier": 0.9, "steps": 1, "orders": order}
        assert renyi_formulas().compute_rdp(**arguments) == rdp.compute_rdp(**arguments)


def test_counting_charges_again_imports_no_torch() -> None:
    code = """
import sys
from medfl.privacy.accounting.accountant import Charge, epsilon, lifetime_epsilon
from medfl.privacy.mechanism import Mechanism

mechanism = Mechanism(
    sampling_prob=0.3, noise_multiplier=1.0, clip_norm=1.0, clipping="fixed", local_steps=1,
    declared_patients=10,
)
charge = Charge(mechanism=mechanism, steps=3)
assert epsilon([charge], delta=1e-5) > 0
assert lifetime_epsilon([[charge], [charge]], delta=1e-5, budget=8.0) > 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
