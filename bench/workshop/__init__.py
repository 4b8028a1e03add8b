"""Serves who writes a method: its first file, tiny models of every family, and what must hold on them."""
