"""Gymnasium environments of dynopt_ray, found by id."""
