#!/usr/bin/env bash
# Installs what is missing, builds, and starts itsUP on db.yml (the first time: a copy of db.yml.sample).
#   --local        8080 and 8443 in place of 80 and 443; always so without root
#   --foreground   stay in this terminal
# ITSUP_PROFILE=dev builds in a quarter of the time what runs at a quarter of the speed.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

local_ports=false foreground=false
for arg in "$@"; do
    case $arg in
        --local) local_ports=true ;;
        --foreground) foreground=true ;;
        *) echo "usage: bin/start-all.sh [--local] [--foreground]" >&2 && exit 2 ;;
    esac
done
[ "$(id -u)" = 0 ] || local_ports=true

need build
profile=${ITSUP_PROFILE:-release}
itsup=$(profile_dir "$profile")/itsup
say "building itsUP ($profile); the first time takes some minutes"
cargo build --profile "$profile" --package itsup --bin itsup

if [ ! -e db.yml ]; then
    [ -e db.yml.sample ] || die "neither db.yml nor db.yml.sample is here"
    cp db.yml.sample db.yml
    say "db.yml is a copy of db.yml.sample"
fi
mkdir -p data logs

# A setting as itsUP will see it: the environment, then .env, then the default.
setting() {
    local value=${!1:-}
    [ -n "$value" ] || value=$(sed -n "s/^$1=[\"']\{0,1\}\([^\"']*\).*/\1/p" .env 2>/dev/null | tail -1)
    echo "${value:-$2}"
}

# Somebody who has said where to listen is not overruled.
if $local_ports; then
    ITSUP_HTTP=$(setting ITSUP_HTTP '[::]:8080') ITSUP_HTTPS=$(setting ITSUP_HTTPS '[::]:8443')
    ITSUP_PUBLIC_HTTPS_PORT=$(setting ITSUP_PUBLIC_HTTPS_PORT "${ITSUP_HTTPS##*:}")
    export ITSUP_HTTP ITSUP_HTTPS ITSUP_PUBLIC_HTTPS_PORT
fi
http=$(setting ITSUP_HTTP '[::]:80') https=$(setting ITSUP_HTTPS '[::]:443')

# How to try it; shown only once it has been seen to work.
show() {
    local port=${https##*:} suffix=
    [ "$port" = 443 ] || suffix=:$port
    local url=https://hello.localhost$suffix/ ca=data/ca/root.pem
    if ! grep -q hello.localhost db.yml; then
        "$itsup" status
        return
    fi
    local try=(curl --cacert "$ca" "$url")
    if [ -z "$(command -v curl)" ]; then
        warn "no curl here to try it with"
    elif ! "${try[@]}" --silent --output /dev/null --max-time 10; then
        # Not every curl and resolver knows that *.localhost is this machine.
        try=(curl --cacert "$ca" --resolve "hello.localhost:$port:127.0.0.1" "$url")
        "${try[@]}" --silent --show-error --output /dev/null --max-time 10 ||
            die "itsUP runs, but $url does not answer; see logs/itsup.log"
    fi
    printf '\nTry it:\n    %s\nor open %s (a browser wants %s among its authorities first)\n' "${try[*]}" "$url" "$ca"
}

if pid=$(running_pid); then
    say "itsUP already runs (process $pid); reloading db.yml. bin/stop-all.sh stops it."
    "$itsup" reload
    show
    exit
fi

ulimit -n "$(ulimit -Hn)"
if $foreground; then
    exec "$itsup" run
fi
log=logs/itsup.log
touch "$log"
before=$(wc -c <"$log")
setsid "$itsup" run >>"$log" 2>&1 </dev/null &
pid=$!
echo "$pid" >data/itsup.pid
for _ in $(seq 300); do
    if tail -c "+$((before + 1))" "$log" | grep -q '^itsup is ready'; then
        say "itsUP runs (process $pid) on $http and $https; log: $log; stop: bin/stop-all.sh"
        show
        exit
    fi
    if ! kill -0 "$pid" 2>/dev/null; then
        rm -f data/itsup.pid
        tail -c "+$((before + 1))" "$log" | tail -20 >&2
        die "itsUP did not start; the lines above are the end of $log"
    fi
    sleep 0.1
done
die "itsUP is not ready after 30 s; see $log"
