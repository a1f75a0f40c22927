"""The page of the gradients of runs."""
