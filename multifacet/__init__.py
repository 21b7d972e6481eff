"""A graph-centric embedding engine: interaction graphs, id embedding tables, rankers that start from them, their servers.

The rooms are `graphdb`, `tables`, `kge`, `contrastive`, `ranking`, `serving` and `pipeline`::

    from multifacet import kge
    from multifacet.graphdb import GraphStore

In the repository their folders lie at the top, and this one holds a link to each; a wheel holds this package alone.
"""
