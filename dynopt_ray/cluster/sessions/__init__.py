"""Sessions: the one place that starts or joins Ray, and ends what it started."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
