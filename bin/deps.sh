#!/usr/bin/env bash
# Installs what building (`build`) or testing (`test`) needs, on Debian, as root. Safe to run again.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

purpose=${1:-test}
case $purpose in
    build) packages=("${BUILD_PACKAGES[@]}") ;;
    test) packages=("${BUILD_PACKAGES[@]}" "${TEST_PACKAGES[@]}") ;;
    *) echo "usage: bin/deps.sh [build|test]" >&2 && exit 2 ;;
esac
[ "$(id -u)" = 0 ] || die "needs root; run:  sudo $0 $purpose"
[ -n "$(command -v apt-get)" ] || die "needs Debian's apt; install by hand: ${packages[*]}, Docker and compose v2"
export DEBIAN_FRONTEND=noninteractive

has_systemd() { [ -d /run/systemd/system ]; }

# apt with the distribution's servers kept from starting: they would take port 80.
install() {
    local policy=/usr/sbin/policy-rc.d status=0
    if [ -e "$policy" ]; then
        apt-get install -y --no-install-recommends "$@" || status=$?
    else
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        apt-get install -y --no-install-recommends "$@" || status=$?
        rm -f "$policy"
    fi
    return $status
}

# A server that we have just installed shall not come up at the next boot either.
disable_services() {
    has_systemd || return 0
    local package
    for package in "$@"; do
        case " ${DISTRO_SERVICES[*]} " in
            *" $package "*) systemctl disable --quiet --now "$package" 2>/dev/null || true ;;
        esac
    done
}

# The mirror this machine itself takes Debian from.
mirror() {
    apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' |
        sed -n 's/^Debian \(http[^ ]*\)$/\1/p' | head -1
}

# Debian 12 has compose v1 alone; v2 is in the next release. Everything else there stays out of reach (-1).
pin_compose() {
    local uri keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    uri=$(mirror)
    [ -n "$uri" ] || die "no Debian mirror among apt's sources; install docker compose v2 by hand"
    cat >/etc/apt/sources.list.d/itsup-compose.sources <<SOURCES
Types: deb
URIs: $uri
Suites: trixie
Components: main
Signed-By: $keyring
SOURCES
    cat >/etc/apt/preferences.d/itsup-compose <<PREFERENCES
Package: *
Pin: release n=trixie
Pin-Priority: -1

Package: docker-compose docker-buildx
Pin: release n=trixie
Pin-Priority: 990
PREFERENCES
    apt-get update -q
}

install_compose() {
    local candidate
    candidate=$(apt-cache policy docker-compose | sed -n 's/^ *Candidate: //p')
    case $candidate in
        [2-9]*) ;;
        *) pin_compose ;;
    esac
    install docker-compose docker-buildx
    hash -r
    has_compose || die "docker-compose is installed, but neither 'docker compose version' nor 'docker-compose version' says v2"
}

start_engine() {
    if has_systemd; then
        systemctl start docker || die "systemctl start docker failed; see:  journalctl -u docker"
    else
        setsid dockerd >>/var/log/dockerd.log 2>&1 </dev/null &
    fi
    for _ in $(seq 300); do
        has_engine && return
        sleep 0.1
    done
    die "the Docker daemon does not answer; see /var/log/dockerd.log"
}

mapfile -t lacking < <(missing_packages "${packages[@]}")
if [ "${#lacking[@]}" -gt 0 ]; then
    say "apt: ${lacking[*]}"
    apt-get update -q
    install "${lacking[@]}"
    disable_services "${lacking[@]}"
fi

if [ "$purpose" = test ]; then
    if [ -z "$(command -v dockerd)" ] && ! has_engine; then
        apt-get update -q
        install docker.io
    fi
    has_engine || start_engine
    has_compose || install_compose
    say "docker $(docker version --format '{{.Server.Version}}'), compose $(docker compose version --short 2>/dev/null ||
        docker-compose version --short)"
fi
