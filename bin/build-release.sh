#!/usr/bin/env bash
# Builds target/release/itsup. With --pgo it is built twice: first counting, then, after the load of
# benches/rivals has shown what is hot, for that. PGO needs an llvm-profdata of rustc's own LLVM version.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

case ${1:-} in
    "") pgo=false ;;
    --pgo) pgo=true ;;
    *) echo "usage: bin/build-release.sh [--pgo]" >&2 && exit 2 ;;
esac
need build
if ! $pgo; then
    exec cargo build --release --package itsup --bin itsup
fi

host=$(rustc -vV | sed -n 's/^host: //p')
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')

# rustup's own (component llvm-tools), else Debian's of the same major version: the profile's format goes with it.
find_profdata() {
    local candidate
    for candidate in "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" "llvm-profdata-$llvm" \
        "/usr/lib/llvm-$llvm/bin/llvm-profdata"; do
        if [ -n "$(command -v "$candidate")" ]; then
            echo "$candidate"
            return
        fi
    done
    return 1
}
if ! profdata=$(find_profdata); then
    how="rustup component add llvm-tools    or    sudo apt-get install -y --no-install-recommends llvm-$llvm"
    [ "$(id -u)" = 0 ] || die "no llvm-profdata for LLVM $llvm; run:  $how"
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "llvm-$llvm" ||
        die "no llvm-profdata for LLVM $llvm among the packages; try:  $how"
    profdata=$(find_profdata) || die "llvm-$llvm is installed, but its llvm-profdata is not found"
fi
need test

# --target keeps the flags away from build scripts and macros.
build() {
    RUSTFLAGS=$1 cargo build --release --package itsup --bin itsup --target "$host" --target-dir target/pgo
}
profiles=$ROOT/target/pgo/profiles
rm -rf "$profiles"
mkdir -p "$profiles"
say "1 of 3: the counting build"
build "-Cprofile-generate=$profiles"
say "2 of 3: load"
ITSUP_BIN=target/pgo/$host/release/itsup benches/rivals/run.sh --proxies itsup --rounds 1 --seconds 4 --threads 1 \
    --connections 0 --out target/pgo/load.md >/dev/null
"$profdata" merge -o "$profiles/merged.profdata" "$profiles"
say "3 of 3: the build for what was counted"
# What was hot stands together, and what was not, the cold halves of hot functions too, stands elsewhere: the hot code is some
# 400 KB then instead of parts of 17 MB, which caches and the TLB of the code feel.
build "-Cprofile-use=$profiles/merged.profdata -Cllvm-args=-enable-split-machine-functions -Clink-arg=-Wl,-z,keep-text-section-prefix"
install -D "target/pgo/$host/release/itsup" target/release/itsup
say "target/release/itsup is there"
