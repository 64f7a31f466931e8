"""A real deployment: a server and hospitals as processes of Flower."""
