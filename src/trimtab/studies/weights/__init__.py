"""Studies of what pruning leaves of trained networks."""
