"""A deployment tried out on one machine: the guides' commands, as real processes.

Every step is a `medfl` command in a process of its own, so that what is rehearsed is what people
will type; nothing of a site or a server runs in this one.
"""
