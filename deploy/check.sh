#!/usr/bin/env bash
# What under deploy/ can be checked without a cloud: the Terraform modules and topologies, and the proxies' configurations. A tool that is absent
# is named, and the rest goes on. Any failure makes the end fail.
#
# TERRAFORM is the binary to use instead of the one on the PATH; CHECK_DEPLOY_JOBS is how many of its checks run at a time.
set -uo pipefail
cd "$(dirname "$0")"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# What needs no tool: rules of the house that Terraform does not know.
check_text() {
  local good=0 sources
  sources=$(find terraform -name '*.tf' -not -path '*/google-ranges/*')
  # shellcheck disable=SC2086
  if grep -nE '35\.199\.192|35\.191\.0|130\.211\.0|199\.36\.153' $sources; then
    echo "terraform: Google's ranges stand in modules/google-ranges and nowhere else"
    good=1
  fi
  # No test can see this: mocked providers destroy everything.
  if ! awk '/^resource "google_kms_/ { n++ } /prevent_destroy = true/ { n-- } END { exit n != 0 }' \
    terraform/modules/ekm-connection/main.tf terraform/modules/external-key/main.tf; then
    echo "terraform: what Cloud KMS cannot delete needs prevent_destroy"
    good=1
  fi
  for file in $(find terraform -name versions.tf); do
    cmp "$file" terraform/modules/ekm-endpoint/versions.tf || good=1
  done
  # shellcheck disable=SC2086
  awk '
    function done() { if (kind != "" && (!described || (kind == "variable" && !typed))) { print file ": " name " has no description or no type"; bad = 1 } kind = "" }
    /^(variable|output) "/ { done(); kind = $1; name = $2; file = FILENAME; described = typed = 0 }
    /^  description += / { described = 1 }
    /^  type += / { typed = 1 }
    /^}/ { done() }
    END { exit bad }' $sources || good=1
  return "$good"
}

# One module or stage: valid, and its tests pass; a stage's for each of its examples. Prints only what is wrong.
check_directory() {
  local directory=$1 log example good=0 count
  log=$(mktemp -d -p "$work")
  # Nothing is left in the tree, and none of these run into each other.
  export TF_DATA_DIR="$log/data"
  tf() { "$terraform" -chdir="$directory" "$@"; }

  { tf $fetch -no-color && tf validate -no-color; } >"$log/validate" 2>&1 || good=1
  if [ $good -ne 0 ]; then
    cat "$log/validate"
  elif [ -d "$directory/examples" ]; then
    # The guards are about no example in particular: they run with the first.
    local filters=()
    for example in "$directory"/examples/*.tfvars; do
      echo "= $(basename "$example")"
      tf test -no-color -var-file="examples/$(basename "$example")" ${filters[@]+"${filters[@]}"} || good=1
      filters=(-filter=tests/invariants.tftest.hcl -filter=tests/first_plan.tftest.hcl)
    done >"$log/test" 2>&1
  else
    tf test -no-color >"$log/test" 2>&1 || good=1
  fi
  count=$(grep -c '^  run .*\.\.\. pass$' "$log/test" 2>/dev/null)
  # A directory without a test would pass for ever.
  if [ $good -eq 0 ] && [ "${count:-0}" -gt 0 ]; then
    echo "terraform: $directory: ok, $count tests"
  else
    [ ! -f "$log/test" ] || grep -v '\.\.\. \(pass\|skip\|in progress\|tearing down\)$' "$log/test"
    echo "terraform: $directory: FAILED"
    good=1
  fi
  # init's. A lock file belongs to who applies; there is none here.
  rm -rf "$log" "$directory/.terraform.lock.hcl"
  return "$good"
}

check_terraform() {
  terraform=$(realpath "$(command -v "$1")")
  export terraform work TF_IN_AUTOMATION=1 CHECKPOINT_DISABLE=1
  # One download for all, if any.
  export TF_PLUGIN_CACHE_DIR="$work/plugins" TF_PLUGIN_CACHE_MAY_BREAK_DEPENDENCY_LOCK_FILE=1
  mkdir "$TF_PLUGIN_CACHE_DIR" "$work/probe"

  "$terraform" fmt -check -recursive -diff terraform || { echo "terraform: run 'terraform fmt -recursive deploy/terraform'"; failed=1; }

  # Where the CLI configuration overrides the provider, there is nothing to init, and init would ask the registry all the same.
  cp terraform/modules/ekm-endpoint/versions.tf "$work/probe/"
  if "$terraform" -chdir="$work/probe" validate >/dev/null 2>&1; then
    export fetch=get
  elif "$terraform" -chdir="$work/probe" init -backend=false -input=false -no-color >"$work/init" 2>&1; then
    export fetch="init -backend=false -input=false"
  else
    tail -n 20 "$work/init"
    echo "terraform: the provider hashicorp/google is absent, and no registry has it: only the format of deploy/terraform is checked"
    return
  fi

  export -f check_directory
  # The long ones first.
  printf '%s\n' terraform/topologies/*/network terraform/modules/* terraform/topologies/*/kms |
    xargs -P "${CHECK_DEPLOY_JOBS:-$(nproc)}" -I{} bash -c 'check_directory {}' || failed=1
}

check_text || failed=1
if command -v "${TERRAFORM:-terraform}" >/dev/null; then
  check_terraform "${TERRAFORM:-terraform}"
else
  echo "terraform: absent, deploy/terraform is not checked"
fi

# The proxies' configurations have a check of their own, which names what is absent itself.
if [ -x nginx/check.sh ]; then
  nginx/check.sh || failed=1
fi

exit "$failed"
