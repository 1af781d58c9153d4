#!/usr/bin/env bash
# Installs what the tests need and runs them all: unit, property, corpus, black box, documentation.
# Arguments go to `cargo nextest run`, such as a name to filter by.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

need test
need_cargo_tool nextest 0.9
need_python_clients

cargo nextest run --workspace ${CI:+--profile ci} "$@"
# A filter names tests; the documentation's examples have none.
[ $# -gt 0 ] || cargo test --workspace --doc
