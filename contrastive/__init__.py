"""Contrastive pretraining of user and pin tables."""
