"""latentprint."""
