"""What somebody has to be told of a run who answers for the data, and what may be told to all."""
