"""A real deployment: a coordinator's server and hospitals' sites as processes of Flower."""
