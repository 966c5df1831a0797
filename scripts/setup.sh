#!/bin/sh
# Installs what `make run` and `make test` need, and says so. Does nothing that is done already.
# Usage: setup.sh run|test
set -eu

say() { printf '%s\n' "setup: $*"; }

# Debian packages, with apt when we may, else with the line to type.
missing=""
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need cc gcc
[ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
need curl curl
if [ "$1" = test ]; then
    [ -e /usr/lib/softhsm/libsofthsm2.so ] || missing="$missing softhsm2"
    need sqlite3 sqlite3
fi
if [ -n "$missing" ]; then
    missing="$missing ca-certificates"
    if [ "$(id -u)" = 0 ]; then as_root=""; elif command -v sudo >/dev/null 2>&1; then as_root="sudo"; else as_root="none"; fi
    if [ "$as_root" = none ] || ! command -v apt-get >/dev/null 2>&1; then
        say "please install these packages first, then try again:"
        say "    apt-get install -y$missing"
        exit 1
    fi
    say "installing Debian packages:$missing"
    $as_root apt-get update -qq
    # shellcheck disable=SC2086 # words are wanted
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
fi

# Rust, in the version that rust-toolchain.toml names; rustup fetches that by itself.
if ! command -v cargo >/dev/null 2>&1 && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
    say "installing Rust with rustup, into ~/.cargo and ~/.rustup"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none --no-modify-path
fi
