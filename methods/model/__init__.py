"""A Hugging Face decoder by role, and the cuts of it."""
