"""Everything that runs on Ray: sessions, searches, policy training, and learners in actors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
