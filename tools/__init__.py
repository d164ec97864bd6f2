"""What the project uses on itself and does not ship."""
