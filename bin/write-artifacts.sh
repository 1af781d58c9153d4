#!/usr/bin/env bash
# Writes the stacks' compose files below upstream/, and changes nothing else. Arguments are those of `itsup write`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
itsup write "$@"
