#!/bin/sh
# An example of a hook: mails the event, which it reads as JSON, to who is on call.
# Installed with `install -m 0755 -o root hook.sh /opt/medfl-hook.sh`, it stands in the file as
#   hook = ["/opt/medfl-hook.sh", "oncall@example.org"]
set -eu
exec mail -s "medfl: $MEDFL_EVENT at $(uname -n)" "$1"
