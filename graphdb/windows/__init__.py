"""What a view sees: its nodes, its edges, their properties, and the files they are written to."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
