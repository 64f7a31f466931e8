"""What a run leaves on disk, as values that are written and read alike."""
