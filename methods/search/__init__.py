"""Methods that search over what goes from all layers at once."""
