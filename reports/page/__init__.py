"""Records into one HTML page."""
