"""A page of runs while they train, served on this machine."""
