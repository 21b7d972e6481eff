"""Rows that stand where their ids say, each with its id: no index between an id and its row."""
