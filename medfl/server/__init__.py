"""Everything that runs at the coordinator."""
