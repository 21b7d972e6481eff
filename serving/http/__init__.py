"""Ranking over HTTP by the Open Inference Protocol (KServe's v2, Triton's), beside what a company's gateways speak."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
