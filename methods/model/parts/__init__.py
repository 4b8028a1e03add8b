"""What stands in a layer where another part of it stood."""
