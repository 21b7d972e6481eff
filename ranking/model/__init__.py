"""The ranker: tables, the upper model over their rows, and where ids stand in a batch."""
