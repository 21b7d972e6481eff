"""Stages of whole runs: what each does, and the folder that keeps what is finished."""
