"""Placeholder: testing."""
