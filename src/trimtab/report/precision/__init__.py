"""The pages of number formats."""
