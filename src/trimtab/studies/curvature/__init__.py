"""Studies of the curvature of trained networks."""
