"""Finds models, texts and tasks, and keeps what is measured on apart from what is looked at."""
