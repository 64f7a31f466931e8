"""The account of what a cohort has spent, on disk and remembered by a witness."""
