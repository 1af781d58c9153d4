#!/usr/bin/env bash
# Runs nginx (a pair, and one tuned), haproxy, caddy and itsUP in turn on the same backend and certificate, and writes
# docs/performance.md.  Options: --rounds N --seconds S --threads 1,2 --only h1,h2,... --proxies pair,itsup,... --quick
set -euo pipefail
. "$(dirname "$0")/../../bin/lib.sh"
cd "$ROOT"

need test
say "building the load client and the websocket backend"
CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo build --quiet --release -p itsup-load -p itsup-testd --target-dir target/rivals
if [ ! -x "${ITSUP_BIN:=target/release/itsup}" ]; then
    say "building itsUP as the README does"
    bin/build-release.sh
fi
exec python3 benches/rivals/rivals.py --itsup "$ITSUP_BIN" "$@"
