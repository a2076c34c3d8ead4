#!/usr/bin/env bash
# Builds the release binary and compares it with a bare sink; some two minutes besides the build.
# Arguments go to the comparison: benches/run.sh --rounds 8 --write docs/performance.md
set -euo pipefail
cd "$(dirname "$0")/.."

# A file to write is meant from where the caller stands only if it is absolute: cargo runs benchmarks here.
cargo build --release --locked --bin doorward
exec cargo bench --locked --bench side_by_side -- "$@"
