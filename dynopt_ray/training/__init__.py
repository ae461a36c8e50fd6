"""Placeholder: training."""
