#!/bin/sh
# In mount, process and IPC namespaces of its own: opencryptoki's daemon with one soft token, and then the command that is given.
# Its files and its shared memory have fixed places, so they are covered; all ends with the namespaces.
set -eu

mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib/opencryptoki
mkdir -p /run/lock/opencryptoki/swtok /var/lib/opencryptoki/swtok/TOK_OBJ
printf 'version opencryptoki-3.1\nslot 3\n{\nstdll = libpkcs11_sw.so\n}\n' >/run/opencryptoki.conf
mount --bind /run/opencryptoki.conf /etc/opencryptoki/opencryptoki.conf
chgrp -R pkcs11 /run/lock/opencryptoki /var/lib/opencryptoki
chmod -R 770 /run/lock/opencryptoki /var/lib/opencryptoki
pkcsslotd >/dev/null 2>&1
# The module waits for nobody: until the daemon has made its shared memory, it does not start.
tries=100
until softhsm2-util --module "$1" --init-token --slot 3 --label ekm --so-pin 87654321 --pin 87654321 >/dev/null 2>&1; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || { echo "opencryptoki does not start"; exit 1; }
    sleep 0.1
done
shift
"$@"
