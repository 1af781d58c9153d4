#!/usr/bin/env bash
# Installs what is missing, builds the release, and makes what is not there yet: db.yml, .env with a fresh API_KEY, folders.
#   --service    also install and start it as a systemd service (root)
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

service=false
for arg in "$@"; do
    case $arg in
        --service) service=true ;;
        *) echo "usage: bin/install.sh [--service]" >&2 && exit 2 ;;
    esac
done

need build
say "building itsUP; the first time takes some minutes"
cargo build --release --package itsup --bin itsup
itsup init
if $service; then
    itsup service install
fi
