#!/usr/bin/env bash
# The torture test on pairs of versions, one after another: every Postgres meets two or three of the
# servers and clusters of NATS, and each of those two Postgres or more. A line a pair at the end.
#
#   scripts/torture-matrix.sh [minutes for each pair, default 1]
set -euo pipefail
cd "$(dirname "$0")/.."

PAIRS="14:2.9 18:2.15 15:cluster 16:2.10 17:2.12 14:cluster-2.12 15:2.9 16:2.15 18:cluster 17:cluster-2.12 14:2.10 18:2.12"
minutes=${1:-1}
logs=$(mktemp -d)
summary=$logs/summary
failed=0
for pair in $PAIRS; do
    postgres=${pair%%:*} nats=${pair#*:} log=$logs/${pair/:/-}
    if [ "$nats" = 2.9 ] && ! compgen -G ".servers/nats/2.9.*" >/dev/null && ! nats-server --version 2>/dev/null | grep -q v2.9; then
        echo "left out  Postgres $postgres, NATS $nats: there is none" | tee -a "$summary"
        continue
    fi
    echo "== Postgres $postgres, NATS $nats"
    if TORTURE_POSTGRES=$postgres TORTURE_NATS=$nats TORTURE_MINUTES=$minutes \
        ${CARGO:-cargo} test --locked --quiet --test torture -- --nocapture 2>&1 | tee "$log"; then
        verdict=ok
    else
        verdict=FAILED
        failed=1
    fi
    seed=$(sed -n 's/^TORTURE_SEED=//p' "$log")
    proof=$(sed -n 's/^.* s  \([0-9]* faults: .*\)/\1/p' "$log")
    printf '%-9s Postgres %s, NATS %-12s seed %s  %s\n' "$verdict" "$postgres" "$nats" "$seed" "${proof:-no proof}" >>"$summary"
done
echo
cat "$summary"
[ "$failed" = 0 ] && rm -r "$logs" || echo "the output of each pair is in $logs"
exit "$failed"
