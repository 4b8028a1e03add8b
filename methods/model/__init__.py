"""A Hugging Face decoder, seen and cut."""
