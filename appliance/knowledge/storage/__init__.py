"""A collection's files: what was acknowledged survives, and nothing is read that was not written so."""
