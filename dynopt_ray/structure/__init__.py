"""Placeholder: structure."""
