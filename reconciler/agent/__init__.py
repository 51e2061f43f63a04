"""The agent: the composition root and the loop. It joins source, spec, state, plan, execute, engine and
report.

`parts` builds the engine's parts, `intent` turns a source into what is desired, `loop` is the loop itself,
`history` keeps what later turns need on disk, `requests` is what verbs ask of a running agent.
"""
