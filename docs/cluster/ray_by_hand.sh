#!/usr/bin/env bash
# A Ray cluster by hand. On the head node:   ray_by_hand.sh head
#                        On every other node: ray_by_hand.sh worker HEAD_ADDRESS
# The same Python environment, at the same versions, must be active on all of them.
set -euo pipefail

PORT="${RAY_PORT:-6379}"
TOKEN="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$TOKEN" RAY_USAGE_STATS_ENABLED=0

case "${1:-}" in
head)
    if [ ! -s "$TOKEN" ]; then # the same file must lie on every node, readable by you alone
        mkdir -p "$(dirname "$TOKEN")"
        (umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$TOKEN")
    fi
    ray start --head --port "$PORT" --include-dashboard=false --disable-usage-stats
    echo "on this node: RAY_AUTH_MODE=token harness run SUITE --address auto --output /shared/results"
    ;;
worker)
    if [ ! -s "$TOKEN" ]; then
        echo "copy $TOKEN from the head node first (mode 600)" >&2
        exit 2
    fi
    ray start --address "${2:?address of the head node}:$PORT" --disable-usage-stats
    ;;
*)
    echo "usage: $0 head | worker HEAD_ADDRESS" >&2
    exit 2
    ;;
esac
