"""Placeholder: online."""
