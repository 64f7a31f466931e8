"""Folders as collections of this field come, read into cases and patients."""
