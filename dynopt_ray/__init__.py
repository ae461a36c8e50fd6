"""dynopt_ray keeps PyTorch networks the right size."""

__version__ = "0.1.0"
