#!/usr/bin/env bash
# Compares the gateway with a bare sink, side by side in one run; about three minutes besides the build.
# Arguments go to the comparison: benches/run.sh --rounds 8 --write "$PWD/docs/performance.md"
set -euo pipefail
cd "$(dirname "$0")/.."

ulimit -n "$(ulimit -Hn)" || true
exec cargo bench --locked --bench side_by_side -- "$@"
