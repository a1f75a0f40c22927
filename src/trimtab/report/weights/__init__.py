"""The page of a study of weights."""
