#!/usr/bin/env bash
# Builds the test server as one static program, for images FROM scratch, and prints its path.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"
need build
RUSTFLAGS='-C target-feature=+crt-static -C strip=symbols' \
    cargo build --quiet --package itsup-testd --target x86_64-unknown-linux-gnu --target-dir target/static >&2
echo "$ROOT/target/static/x86_64-unknown-linux-gnu/debug/itsup-testd"
