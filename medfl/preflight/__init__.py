"""What a hospital finds out before its first study: data, machine, network."""
