"""A whole study on one machine: planned, simulated, compared with other ways to get a model."""
