#!/usr/bin/env bash
# Stops the itsUP that bin/start-all.sh started: requests under way end first, within ITSUP_GRACE.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

if ! pid=$(running_pid); then
    say "itsUP does not run"
    exit
fi
kill -TERM "$pid"
for _ in $(seq 600); do
    # Not kill -0: where nobody takes the dead away, they can be signalled still.
    if [ "$(running_pid)" != "$pid" ]; then
        rm -f "$ROOT/data/itsup.pid"
        say "stopped"
        exit
    fi
    sleep 0.1
done
die "process $pid has not ended after 60 s; a longer ITSUP_GRACE, or something hangs: see logs/itsup.log"
