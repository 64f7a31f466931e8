"""Cohorts: from folders to crops, and synthetic hospitals."""
