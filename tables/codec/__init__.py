"""Row formats: FP32, FP16, INT8 and INT4, rows fitted by least squares, and precision by frequency."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
