"""Placeholder: cluster."""
