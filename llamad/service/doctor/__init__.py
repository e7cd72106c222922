"""`llamad doctor`: what is wrong on this host, why, and the command that cures it.

Each check is a function of the host that yields findings; `registry` lists them, `runner` gives each its time. Nothing
here changes anything, and no engine is run as root.
"""
