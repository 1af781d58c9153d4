#!/usr/bin/env bash
# Follows what itsUP says itself. Arguments are those of `itsup logs`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
itsup logs --follow api "$@"
