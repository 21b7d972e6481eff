"""Traffic for measurements: requests as traffic has them, sent when they are due."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
