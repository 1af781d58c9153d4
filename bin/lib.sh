# What the scripts in bin/ share. Sourced, never run.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Packages by purpose. aws-lc and mimalloc need a C compiler alone, zlib-ng needs cmake and make.
BUILD_PACKAGES=(gcc libc6-dev make cmake)
TEST_PACKAGES=(pebble knot faketime chromium libnss3-tools nginx libnginx-mod-stream haproxy caddy nghttp2-client openssl curl jq apache2-utils python3-venv
    procps iproute2 git systemd)
# Servers that Debian starts when it installs them; the tests run their own, on their own ports.
DISTRO_SERVICES=(knot nginx haproxy caddy pebble)

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
warn() { printf '\033[1;33mwarning:\033[0m %s\n' "$*" >&2; }
die() {
    printf '\033[1;31merror:\033[0m %s\n' "$*" >&2
    exit 1
}

# The named packages that are not installed, one per line.
missing_packages() {
    local package
    for package in "$@"; do
        dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || echo "$package"
    done
}

# True where a compose v2 answers, as a plugin of docker or as a program of its own.
has_compose() {
    docker compose version --short 2>/dev/null | grep -Eq '^v?[2-9]' ||
        docker-compose version --short 2>/dev/null | grep -Eq '^v?[2-9]'
}

has_engine() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# Says what is missing for `build` or `test`, as words; says nothing when all is there.
missing() {
    missing_packages "${BUILD_PACKAGES[@]}"
    if [ "$1" = test ]; then
        missing_packages "${TEST_PACKAGES[@]}"
        has_engine || echo docker-engine
        has_compose || echo docker-compose-v2
    fi
}

# Makes sure that what `build` or `test` needs is there: installs it as root, says the one line to run otherwise.
need() {
    local lacking
    lacking=$(missing "$1" | tr '\n' ' ')
    if [ -n "$lacking" ]; then
        say "missing: $lacking"
        if [ "$(id -u)" = 0 ]; then
            "$ROOT/bin/deps.sh" "$1"
        else
            die "run this once, then start again:  sudo $ROOT/bin/deps.sh $1"
        fi
    fi
    need_cargo
}

need_cargo() {
    [ -n "$(command -v cargo)" ] || PATH="$HOME/.cargo/bin:$PATH"
    [ -n "$(command -v cargo)" ] ||
        die "no Rust toolchain; run:  curl -sSf https://sh.rustup.rs | sh -s -- -y --profile default"
    [ -n "$(command -v cc)" ] || die "no C compiler; run:  sudo $ROOT/bin/deps.sh build"
}

# need_cargo_tool NAME VERSION: installs cargo-NAME from crates.io where it is missing; any version will do. Built without
# optimisation, which takes a third of the time and is fast enough.
need_cargo_tool() {
    [ -n "$(command -v "cargo-$1")" ] && return
    say "installing cargo-$1 (some minutes, once)"
    cargo install --debug --locked --quiet --version "^$2" "cargo-$1"
}

# Python clients of the tests, in a cached environment; made again when the list changes.
need_python_clients() {
    local venv=$ROOT/target/venv list=$ROOT/tests/clients/requirements.txt
    if ! cmp -s "$list" "$venv/installed.txt"; then
        say "installing the Python test clients into target/venv"
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$list"
        cp "$list" "$venv/installed.txt"
    fi
    export ITSUP_TEST_PYTHON=$venv/bin/python
}

# The built itsUP, on this folder: the release, else the development build, else the one that is installed.
itsup() {
    local program
    for program in "$(profile_dir release)/itsup" "$(profile_dir dev)/itsup" "$(type -P itsup || true)"; do
        if [ -x "$program" ]; then
            "$program" --root "${ITSUP_ROOT:-$ROOT}" "$@"
            return
        fi
    done
    die "itsUP is not built yet: bin/install.sh"
}

# The running itsUP's process id, by its pid file; fails where none runs.
running_pid() {
    local pid
    pid=$(cat "$ROOT/data/itsup.pid" 2>/dev/null) || return 1
    [ "$(readlink "/proc/$pid/exe" 2>/dev/null | sed 's/ (deleted)$//; s|.*/||')" = itsup ] && echo "$pid"
}

# The folder cargo puts a profile's programs in.
profile_dir() {
    local target=${CARGO_TARGET_DIR:-$ROOT/target}
    if [ "$1" = dev ]; then echo "$target/debug"; else echo "$target/$1"; fi
}
