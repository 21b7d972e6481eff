from .copy import Collisions as Collisions
from .copy import RowSums as RowSums
from .copy import copy_rows as copy_rows
from .normal import fill_normal as fill_normal
from .placement import RowPlacement as RowPlacement
