from .edges import Csc as Csc
from .edges import Edges as Edges
from .edges import Triples as Triples
from .export import edge_table as edge_table
from .export import node_table as node_table
