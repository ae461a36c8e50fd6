"""`kind: demo`: everything in one run: policy, adaptation, search, stream."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
