"""Directories that exist whole or not at all, each with a manifest that describes and checks it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
