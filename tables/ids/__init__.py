"""External ids: columns of them, the index that finds them, and the maps from ids to rows."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
