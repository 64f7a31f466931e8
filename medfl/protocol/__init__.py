"""All that crosses the wire between a hospital and the coordinator, and who signed it."""
