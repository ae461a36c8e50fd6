"""Placeholder: runs."""
