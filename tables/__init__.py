"""What an embedding table is: artefacts, id maps, snapshots, codecs, row-wise optimisers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
