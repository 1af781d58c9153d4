# Shell functions for people with many stacks. Put into ~/.bashrc or ~/.zshrc:
#
#   export ITSUP_ROOT=/srv/itsup            # the folder with db.yml
#   . "$ITSUP_ROOT/lib/functions.sh"
#
#   dcu PROJECT ARGS...   docker compose on one project's stack:  dcu shop logs -f shop-web
#   dca ARGS...           the same on every stack:                dca ps
#   dcp [ARGS...]         the proxy itself: logs, status (also with no word at all), restart; any other word is itsup's
#
# `up` implies -d and pulls first.

dcu() {
    itsup stack "$@"
}

dca() {
    itsup all "$@"
}

dcp() {
    case "${1:-status}" in
        logs)
            shift
            if systemctl cat itsup.service >/dev/null 2>&1; then
                journalctl --unit itsup --lines "${DCP_LINES:-100}" "$@"
            else
                tail -n "${DCP_LINES:-100}" "$@" "${ITSUP_ROOT:-.}/logs/access.log"
            fi
            ;;
        status | ps)
            itsup status
            ;;
        restart)
            if systemctl cat itsup.service >/dev/null 2>&1; then
                systemctl restart itsup
            elif [ -x "${ITSUP_ROOT:-.}/bin/start-all.sh" ]; then
                "${ITSUP_ROOT:-.}/bin/stop-all.sh" && "${ITSUP_ROOT:-.}/bin/start-all.sh"
            else
                echo "dcp: no itsup.service, and no bin/start-all.sh below ${ITSUP_ROOT:-.}" >&2
                return 1
            fi
            ;;
        *)
            itsup "$@"
            ;;
    esac
}

# The words after dcu and dca complete as those after `itsup stack` and `itsup all` do.
if [ -n "${BASH_VERSION:-}" ] && command -v itsup >/dev/null 2>&1; then
    _itsup_as() {
        local words=(itsup "$1" "${COMP_WORDS[@]:1}")
        local IFS=$'\013'
        # shellcheck disable=SC2207
        COMPREPLY=($(_CLAP_IFS="$IFS" _CLAP_COMPLETE_INDEX="$((COMP_CWORD + 1))" _CLAP_COMPLETE_COMP_TYPE="${COMP_TYPE:-9}" \
            _CLAP_COMPLETE_SPACE=true COMPLETE=bash itsup -- "${words[@]}" 2>/dev/null))
    }
    _itsup_dcu() { _itsup_as stack; }
    _itsup_dca() { _itsup_as all; }
    complete -F _itsup_dcu dcu
    complete -F _itsup_dca dca
fi
