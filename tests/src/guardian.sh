# See guardian.rs. The argument is the directory, which has a random name.
directory=$1
trap '' HUP INT TERM
read -r _

# The ids of the daemons that work in the directory, or have it in their command line; with an argument, only those of this name.
daemons() {
    for process in /proc/[0-9]*; do
        read -r name <"$process/comm" || continue
        case $name in postgres | pgbouncer | etcd | patroni | ekm | nginx | haproxy) ;; *) continue ;; esac
        [ "${1:-$name}" = "$name" ] || continue
        case "$(readlink "$process/cwd") $(tr '\0' ' ' <"$process/cmdline")" in
        *"$directory"*) echo "${process#/proc/}" ;;
        esac
    done
}

# Patroni first, or it starts PostgreSQL again. PostgreSQL gives its shared memory back when asked to quit, not when killed.
for name in patroni etcd pgbouncer nginx haproxy ekm; do
    for id in $(daemons $name); do kill -KILL "$id"; done
done
for id in $(daemons postgres); do kill -QUIT "$id" && kill -CONT "$id"; done
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    [ -n "$(daemons)" ] || break
    sleep 0.1
done
for id in $(daemons); do kill -KILL "$id"; done
# What a killed one has left: line 7 names the segment.
find "$directory" -name postmaster.pid | while read -r file; do
    ipcrm -m "$(sed -n '7s/.* //p' "$file")"
done
rm -rf "$directory"
