"""Synthetic patients: heads with tumours, as scanners of several hospitals would show them."""
