"""`kind: policy`: train a structure policy, and compare it with a random one."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
