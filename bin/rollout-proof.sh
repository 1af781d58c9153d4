#!/usr/bin/env bash
# Rolls a service over under load, many times for each way of an application to start and to end, with itsUP and with what it
# replaces (two nginx, scale and reload) in the same run, and writes docs/rollouts.md (about 40 minutes).
# Options: --rounds N --cases NAME,... --rivals-rounds N --no-write
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

need test
say "building the load client"
CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo build --quiet --release -p itsup-load --target-dir target/rivals
if [ ! -x "${ITSUP_BIN:=target/release/itsup}" ]; then
    say "building itsUP as the README does"
    bin/build-release.sh
fi
say "building the test server"
TESTD=$(bin/build-testd.sh)
exec python3 benches/rollouts/proof.py --itsup "$ITSUP_BIN" --load target/rivals/release/itsup-load --testd "$TESTD" "$@"
