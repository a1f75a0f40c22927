"""The page of curvature."""
