"""Placeholder: population."""
