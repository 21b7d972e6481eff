"""Choosing a configuration by trial within a budget of CPU time: what both pretrainers' searches share."""
