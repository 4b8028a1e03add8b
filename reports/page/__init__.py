"""Makes one HTML page from records."""
