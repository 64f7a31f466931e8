"""The one door to what Flower keeps private.

Flower 1.41 has public interfaces for apps (`flwr.app`, `flwr.clientapp`, `flwr.serverapp`) and for
simulations. A hospital needs more of it: a pinned app, a guarded server, a node that waits behind a
proxy, a process for each message. The private names that this takes are used in this room and in
`medfl.study.in_process_grid`; a test finds any other. Anyone who moves to another version of
Flower reads these modules:

- `app_pin`: the step of a SuperNode that pulls a message, and the one that stores a reply.
- `control`: the client of the control path.
- `guard`: the names of a SuperLink's paths.
- `log_lines`: the form of a log's lines.
- `node`: the command `flower-supernode`, its clock, the failures after which it tries again, and
  what says that it is there.
- `superlink`: the parts of the command `flower-superlink`.
- `tasks`: the SuperExec and what it asks of an executor, the command `flwr-clientapp`, and the
  path on which a node hands tasks out.
- `turns`: the steps of a SuperNode that pull a message and push the reply, and its state.
"""
