"""`kind: prune`: prune one network by the loop of the source article."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
