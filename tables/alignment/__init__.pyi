from .alignment import Alignment as Alignment
from .alignment import Symmetry as Symmetry
from .fitting import fit_alignment as fit_alignment
from .snapshots import align_snapshot as align_snapshot
