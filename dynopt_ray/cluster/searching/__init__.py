"""Searches: run trials drawn from a space, in this process or on a cluster, and tabulate them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
