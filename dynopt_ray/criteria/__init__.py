"""Placeholder: criteria."""
