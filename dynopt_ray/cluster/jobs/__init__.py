"""Jobs: runs that are submitted to a cluster and go on without the machine they came from."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
