# Run with one of the examples: terraform test -var-file=examples/NAME.tfvars

mock_provider "google" {
  source          = "../../../mocks"
  override_during = plan
}

run "keys_at_the_public_host_name" {
  command = plan

  assert {
    condition     = keys(output.keys["keys-example"]) == ["orders"]
    error_message = "The key project has its key."
  }
  assert {
    condition     = can(regex("--keyring ekm-${var.network.suffix} --location ${var.location} --project keys-example ", output.set_primary_commands["keys-example"]["orders/first"]))
    error_message = "The command names the key where it is."
  }
}
