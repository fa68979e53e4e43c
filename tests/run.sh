#!/usr/bin/env bash
# Every notebook, then every pytest file, two at a time; fails if either fails. Its last line is pytest's closing line.
set -uo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 MPLBACKEND=Agg # two workers, one thread each: no core is asked twice
log=$(mktemp); trap 'rm -f "$log"' EXIT

SECONDS=0
nbdev-test --n-workers 2 --timing --do-print; notebooks=$?
took=$SECONDS
[ "$notebooks" -eq 0 ] && verdict=passed || verdict=FAILED
echo "notebooks: $verdict in $took s"

SECONDS=0
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" 2>&1 | tee "$log"; pytest=${PIPESTATUS[0]}
echo "notebooks: $verdict in $took s; pytest: $([ "$pytest" -eq 0 ] && echo passed || echo FAILED) in $SECONDS s"
tail -n 1 "$log"
[ "$notebooks" -eq 0 ] && [ "$pytest" -eq 0 ]
