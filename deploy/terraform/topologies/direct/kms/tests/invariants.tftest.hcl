# Run with one of the examples: terraform test -var-file=examples/NAME.tfvars

mock_provider "google" {
  source          = "../../../mocks"
  override_during = plan
}

run "a_connection_and_keys_in_the_network_stages_region" {
  command = plan

  assert {
    condition     = keys(output.keys) == ["keys-example"] && keys(output.keys["keys-example"]) == ["orders"]
    error_message = "The key project has its key."
  }
  assert {
    condition     = can(regex("/locations/${var.network.location}/ekmConnections/ekm-${var.network.suffix}:verifyConnectivity$", output.verify_commands["keys-example"]))
    error_message = "The connection is in that region, with the suffix in its name."
  }
  assert {
    condition     = length(output.set_primary_commands["keys-example"]) == (var.key_projects["keys-example"].key_management_mode == "MANUAL" ? 1 : 0)
    error_message = "A manual key needs its primary version set; Cloud KMS sets those that it makes."
  }
}
