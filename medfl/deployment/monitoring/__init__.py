"""What both sides of a deployment need to be watched: a page, metrics, and a hook for events."""
