#!/bin/sh
# Are the configurations here and in ../haproxy right? Renders the template with Terraform, where it is installed, and compares; has nginx and
# HAProxy read every file. What is not installed is named, and left out. Usage: deploy/nginx/check.sh
set -eu

here=$(cd "$(dirname "$0")" && pwd)
export PATH="$PATH:/usr/sbin"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say() { printf '%s\n' "check: $*"; }
failed=0
wrong() {
    say "$*"
    failed=1
}

if command -v terraform >/dev/null 2>&1; then
    for variables in "$here"/examples/*.json; do
        expected="${variables%.json}.conf"
        # base64, as the console would show text of several lines in its own way.
        echo "base64encode(templatefile(\"$here/stream.conf.tftpl\", jsondecode(file(\"$variables\"))))" |
            (cd "$work" && terraform console) | tr -d '"' | base64 -d >"$work/rendered.conf"
        cmp -s "$work/rendered.conf" "$expected" ||
            wrong "$expected is not what terraform renders: EKM_UPDATE_GOLDEN=1 cargo test -p ekm-tests --lib template"
    done
    say "rendered examples: compared with what terraform renders"
else
    say "terraform is not installed: rendered examples are not compared with it"
fi

# A certificate for the files that name one; HAProxy looks for its key under this name.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=ekm.example.com \
    -keyout "$work/private-key.pem" -out "$work/certificate.pem" 2>/dev/null
cp "$work/private-key.pem" "$work/certificate.pem.key"

# nginx makes its temporary directories even for -t.
temporary=""
for name in client_body proxy fastcgi uwsgi scgi; do temporary="$temporary ${name}_temp_path $work/$name;"; done

if command -v nginx >/dev/null 2>&1; then
    for configuration in "$here"/examples/*.conf "$here/https.conf"; do
        sed -e "s#/var/log/nginx#$work#; s#/etc/nginx/ekm-ca.pem#$work/certificate.pem#; s#/etc/nginx/tls#$work#" \
            -e "s#^http {#http { $temporary#" "$configuration" >"$work/nginx.conf"
        if nginx -t -q -c "$work/nginx.conf" -g "pid $work/pid;" 2>"$work/messages"; then
            say "nginx: ${configuration#"$here"/} is fine"
        else
            wrong "nginx: ${configuration#"$here"/}: $(cat "$work/messages")"
        fi
    done
else
    say "nginx is not installed: its configurations are not checked"
fi

if command -v haproxy >/dev/null 2>&1; then
    for configuration in "$here"/../haproxy/*.cfg; do
        sed -e "s#/etc/haproxy/ekm-ca.pem#$work/certificate.pem#; s#/etc/haproxy/tls#$work#" "$configuration" >"$work/haproxy.cfg"
        if haproxy -c -q -f "$work/haproxy.cfg" 2>"$work/messages"; then
            say "haproxy: ${configuration##*/} is fine"
        else
            wrong "haproxy: ${configuration##*/}: $(cat "$work/messages")"
        fi
    done
else
    say "haproxy is not installed: its configurations are not checked"
fi
exit $failed
