"""Studies of the dynamics of gradients."""
