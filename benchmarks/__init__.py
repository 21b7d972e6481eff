"""Benchmarks: every module of this folder is one, run by `python -m benchmarks NAME`; `harness` is what they run in.

A benchmark's name is its module's, its help the first line of the module's docstring, and its measurements what its
`run(quick: bool) -> Iterator[Row]` yields. It measures its peer in the same run, warms up before it times, and reads
what it times, so that nothing is left undone. With `quick` it ends within 60 seconds on two cores.
"""
