"""Networks, losses, inference and metrics; nothing here knows of privacy."""
