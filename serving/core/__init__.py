"""What servers and rollouts decide: pure steps from (state, event) to (state, actions).

Nothing here reads a clock, a file or a socket, starts a thread, or logs. States, events and actions are frozen and compare by
value, so that a test may drive every order of events, and keep the states that it has seen in a set.

- `serving.core.holdings`: which releases a server holds, remembers, and calls its current one.
- `serving.core.readiness`: whether a ranker can answer.
- `serving.core.controller`: the steps of a rollout.
- `serving.core.agreement`: whether rows that came may be scored.
- `serving.core.layers`: whether a delta may be laid over a release.
- `serving.core.replicas`: which of several servers is asked next. Every request changes it, so it changes in place.
"""
