#!/usr/bin/env bash
# Brings Cargo.lock to the newest versions that Cargo.toml allows, and keeps that only if everything still holds.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

need test
need_cargo_tool deny 0.20
before=$(mktemp)
trap 'rm -f "$before"' EXIT
cp Cargo.lock "$before"
if cargo update && cargo deny check && bin/test.sh; then
    say "Cargo.lock is up to date; commit it"
else
    cp "$before" Cargo.lock
    die "something does not hold with the newest versions (see above): Cargo.lock is as it was"
fi
