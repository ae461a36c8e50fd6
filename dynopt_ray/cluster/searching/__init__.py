"""Searches: trials drawn from a space, here or on a cluster, and the tables made of them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
