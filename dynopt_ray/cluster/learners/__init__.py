"""Online learners in Ray actors, which keep their state when their process dies."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
