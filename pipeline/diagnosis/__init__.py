"""The paper's failure signatures as checks: a number, its cause, and the line that mends it."""
