#!/bin/sh
# Installs what `make run` and `make test` need, and says so. Does nothing that is done already.
# Usage: setup.sh run|test|bench-instructions
set -eu

say() { printf '%s\n' "setup: $*"; }

# Debian packages, with apt when we may, else with the line to type.
missing=""
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need_file() { [ -e "$1" ] || missing="$missing $2"; }
need cc gcc
need_file /usr/include/stdio.h libc6-dev
need curl curl
[ "$1" != bench-instructions ] || need valgrind valgrind
if [ "$1" != run ]; then
    need_file /usr/lib/softhsm/libsofthsm2.so softhsm2
    need sqlite3 sqlite3
    need openssl openssl # verifies signatures
    ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || missing="$missing faketime" # clocks that jump
    # The tokens besides SoftHSM: opencryptoki's, and kryoptic, which is built from source.
    ls /usr/lib/*/libopencryptoki.so.0 >/dev/null 2>&1 && [ -x /usr/sbin/pkcsslotd ] || missing="$missing opencryptoki"
    need_file /usr/include/openssl/ssl.h libssl-dev
    need_file /usr/include/sqlite3.h libsqlite3-dev
    need pkg-config pkg-config
    ls /usr/lib/llvm-*/lib/libclang.so >/dev/null 2>&1 || missing="$missing libclang-dev"
    # The binaries of PostgreSQL and of daemons are not on everyone's PATH.
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
    need_file /usr/sbin/pgbouncer pgbouncer
    need_file /usr/bin/etcd etcd-server
    need_file /usr/bin/patroni patroni
    need_file /usr/lib/python3/dist-packages/etcd python3-etcd # Patroni's client of etcd; the package may come with another
    command -v ip >/dev/null 2>&1 || need_file /usr/sbin/ip iproute2
    # The load balancers of the topology drill.
    need_file /usr/sbin/nginx nginx
    ls /usr/lib/nginx/modules/ngx_stream_module.so >/dev/null 2>&1 || missing="$missing libnginx-mod-stream"
    need_file /usr/sbin/haproxy haproxy
fi

# The tests start daemons of their own: those of the packages are not started, nor, where systemd is, at the next boot; and no
# database cluster is made. What is changed for that while apt runs is changed back; what was installed before is left alone.
policy=/usr/sbin/policy-rc.d
cluster_settings=/etc/postgresql-common/createcluster.d/zz-ekm-setup.conf
without_daemons() {
    made=""
    undo() {
        # shellcheck disable=SC2086 # words are wanted
        [ -z "$made" ] || $as_root rm -f $made
        $as_root rmdir --ignore-fail-on-non-empty -p "${cluster_settings%/*}" 2>/dev/null || true
    }
    trap undo EXIT
    trap 'exit 1' INT TERM HUP
    if [ ! -e $policy ]; then
        made=$policy
        printf '#!/bin/sh\nexit 101\n' | $as_root tee $policy >/dev/null
        $as_root chmod 755 $policy
    fi
    made="$made $cluster_settings"
    $as_root mkdir -p "${cluster_settings%/*}"
    echo "create_main_cluster = false" | $as_root tee $cluster_settings >/dev/null
    "$@"
    if command -v systemctl >/dev/null 2>&1; then
        for both in pgbouncer:pgbouncer patroni:patroni etcd-server:etcd opencryptoki:pkcsslotd nginx:nginx haproxy:haproxy; do
            case "$missing " in *" ${both%:*} "*) $as_root systemctl disable -q "${both#*:}" || true ;; esac
        done
    fi
    undo
    trap - EXIT INT TERM HUP
}

if [ -n "$missing" ]; then
    missing="$missing ca-certificates"
    if [ "$(id -u)" = 0 ]; then as_root=""; elif command -v sudo >/dev/null 2>&1; then as_root="sudo"; else as_root="none"; fi
    if [ "$as_root" = none ] || ! command -v apt-get >/dev/null 2>&1; then
        say "please install these packages first, then try again:"
        say "    apt-get install -y --no-install-recommends$missing"
        exit 1
    fi
    say "installing Debian packages:$missing"
    $as_root apt-get update -qq
    # shellcheck disable=SC2086 # words are wanted
    without_daemons $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

# Rust, in the version that rust-toolchain.toml names; rustup fetches that by itself.
if ! command -v cargo >/dev/null 2>&1 && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
    say "installing Rust with rustup, into ~/.cargo and ~/.rustup"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none --no-modify-path
fi
