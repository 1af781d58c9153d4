#!/usr/bin/env bash
# Checks db.yml and .env. Arguments are those of `itsup validate`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
itsup validate "$@"
