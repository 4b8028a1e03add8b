"""Methods that remove experts from mixtures of experts."""
