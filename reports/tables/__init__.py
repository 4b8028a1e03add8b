"""Makes tables from records."""
