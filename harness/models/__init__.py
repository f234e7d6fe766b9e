"""Point-cloud encoders, their heads and their weights."""
