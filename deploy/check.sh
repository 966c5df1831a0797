#!/usr/bin/env bash
# What under deploy/ can be checked without a cloud: the Terraform modules and topologies, and the proxies' configurations. A tool that is absent
# is named, and the rest goes on. Any failure makes the end fail.
#
# TERRAFORM is the binary to use instead of the one on the PATH; CHECK_DEPLOY_JOBS is how many of its checks run at a time.
set -uo pipefail
cd "$(dirname "$0")"

failed=0

# One module or stage: valid, and its tests pass; a stage's for each of its examples. Prints only what is wrong.
check_directory() {
  local directory=$1 work example count
  work=$(mktemp -d)
  # Nothing is left in the tree, and none of these run into each other.
  export TF_DATA_DIR="$work/data" TF_IN_AUTOMATION=1 CHECKPOINT_DISABLE=1
  tf() { "$terraform" -chdir="$directory" "$@"; }

  {
    tf get
    # Where the CLI configuration overrides the provider, there is nothing to init, and init would ask the registry all the same.
    if ! tf validate -no-color >"$work/validate" 2>&1; then
      grep -q 'terraform init' "$work/validate" && tf init -backend=false -input=false -no-color && tf validate -no-color >"$work/validate" 2>&1
    fi
  } >"$work/init" 2>&1
  local good=$?
  if [ $good -ne 0 ]; then
    cat "$work/init" "$work/validate"
  elif [ -d "$directory/examples" ]; then
    # The guards are about no example in particular: they run with the first.
    local filters=()
    for example in "$directory"/examples/*.tfvars; do
      echo "= $(basename "$example")"
      tf test -no-color -var-file="examples/$(basename "$example")" ${filters[@]+"${filters[@]}"} || good=1
      filters=(-filter=tests/invariants.tftest.hcl)
    done >"$work/test" 2>&1
  else
    tf test -no-color >"$work/test" 2>&1 || good=1
  fi
  count=$(grep -c '^  run .*\.\.\. pass$' "$work/test" 2>/dev/null)
  # A directory without a test would pass for ever.
  if [ $good -eq 0 ] && [ "${count:-0}" -gt 0 ]; then
    echo "terraform: $directory: ok, $count tests"
  else
    [ ! -f "$work/test" ] || grep -v '\.\.\. \(pass\|skip\|in progress\|tearing down\)$' "$work/test"
    echo "terraform: $directory: FAILED"
    good=1
  fi
  rm -rf "$work"
  # init's, if it ran; a lock file belongs to who applies, and there is none here.
  rm -f "$directory/.terraform.lock.hcl"
  return "$good"
}

terraform=${TERRAFORM:-terraform}
if command -v "$terraform" >/dev/null; then
  terraform=$(realpath "$(command -v "$terraform")")
  "$terraform" fmt -check -recursive -diff terraform || { echo "terraform: run 'terraform fmt -recursive deploy/terraform'"; failed=1; }
  export -f check_directory
  export terraform
  # The long ones first.
  printf '%s\n' terraform/topologies/*/network terraform/modules/* terraform/topologies/*/kms |
    xargs -P "${CHECK_DEPLOY_JOBS:-$(nproc)}" -I{} bash -c 'check_directory {}' || failed=1
else
  echo "terraform: absent, deploy/terraform is not checked"
fi

# The proxies' configurations have a check of their own, which names what is absent itself.
if [ -x nginx/check.sh ]; then
  nginx/check.sh || failed=1
fi

exit "$failed"
