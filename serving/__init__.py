"""Releases and the servers that score with them.

Names are imported at their first use: a lookup server and a client need neither torch nor the publisher.
"""

import lazy_loader

from multifacet.serving import numba_cache

numba_cache.settle()

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
