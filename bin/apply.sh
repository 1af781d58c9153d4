#!/usr/bin/env bash
# Makes containers and routes what db.yml says. Arguments are those of `itsup apply`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
itsup apply "$@"
