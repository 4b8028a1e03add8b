"""Makes figures from records."""
