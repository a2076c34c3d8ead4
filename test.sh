#!/usr/bin/env bash
# Installs what a fresh Debian machine lacks, and runs every test. Rust and a C compiler are all it expects.
# Arguments go to the test runner: ./test.sh registry
set -euo pipefail
cd "$(dirname "$0")"

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

packages=()
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || packages+=(postgresql)
command -v pgbouncer >/dev/null || packages+=(pgbouncer)
python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || packages+=(python3-venv)
command -v openssl >/dev/null || packages+=(openssl)
command -v curl >/dev/null || packages+=(curl)
if [ ${#packages[@]} -gt 0 ]; then
    as_root apt-get update -q
    # The tests start servers of their own: the package need not.
    as_root apt-get install -qy --no-install-recommends postgresql-common
    as_root sed -i 's/^#*create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${packages[@]}"
    if [[ " ${packages[*]} " == *" pgbouncer "* ]]; then
        as_root service pgbouncer stop >/dev/null 2>&1 || true
        as_root systemctl disable -q pgbouncer 2>/dev/null || as_root update-rc.d pgbouncer disable || true
    fi
fi

# The device that is not ours, with the libraries it names.
venv=target/venv
if ! cmp -s examples/python/requirements.txt "$venv/requirements.txt"; then
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check -r examples/python/requirements.txt
    cp examples/python/requirements.txt "$venv/"
fi

# The linter for certificates, by hash. It is no part of the product.
lint=target/venv-lint
if ! cmp -s tests/requirements.txt "$lint/requirements.txt"; then
    python3 -m venv --clear "$lint"
    "$lint/bin/pip" install -q --disable-pip-version-check --require-hashes --only-binary=:all: -r tests/requirements.txt
    cp tests/requirements.txt "$lint/"
fi

# Thousands of descriptors, where they are to be had.
ulimit -n "$(ulimit -Hn)" || true

command -v cargo-nextest >/dev/null || cargo install --locked cargo-nextest
cargo test --workspace --locked --doc --quiet
cargo nextest run --workspace --locked "$@"
