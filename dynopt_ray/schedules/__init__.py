"""Placeholder: schedules."""
