"""What is asked of a caller's input: arguments that are checked, and configurations that are refused in plain words."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
