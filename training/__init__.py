"""What every training shares: its life around its steps, checkpoints, warm starts, step threads, samplers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
