#!/usr/bin/env bash
# Renews the certificates that are due. Arguments are those of `itsup certs update`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
itsup certs update "$@"
