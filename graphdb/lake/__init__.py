"""Tables that lie elsewhere, as sources of loads: Iceberg, Delta, partitioned Parquet, and databases."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
