"""Model files: verified, content-addressed, planned for before they are loaded."""
