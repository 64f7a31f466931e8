"""The one door to what Flower keeps private."""
