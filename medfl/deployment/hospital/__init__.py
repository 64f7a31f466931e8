"""A hospital's side of a deployment."""
