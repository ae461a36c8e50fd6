"""Placeholder: policies."""
