"""Placeholder: tasks."""
