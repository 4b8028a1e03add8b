"""Loads models, texts and tasks, and keeps evaluation apart from calibration."""
