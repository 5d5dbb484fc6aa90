"""What an administrator may have to know of this box."""
