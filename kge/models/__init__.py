"""Scoring models, the maps they are made of, and the relations' parameters."""
