"""Row-wise optimizers, and the sums of gradients by row that they take."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
