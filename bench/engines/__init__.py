"""Where cells run: what every engine offers (engine), and the one of this machine (local)."""
