"""Asks the Hugging Face hub and its cache for models and texts."""
