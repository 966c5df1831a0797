mock_provider "google" {
  source          = "../../mocks"
  override_during = plan
}

variables {
  project_id                = "keys-example"
  name                      = "ekm-a1"
  location                  = "europe-west3"
  service_directory_service = "projects/net-example/locations/europe-west3/namespaces/ekm-a1/services/ekm"
  hostname                  = "ekm.example.com"
  server_certificates_pem   = [file("../../topologies/example-certificate.pem")]
}

run "manual_keys_use_the_connection" {
  command = plan
  variables { keys = { orders = { versions = { first = { path = "v0/keys/orders" } } } } }

  assert {
    condition     = output.connection == "projects/keys-example/locations/europe-west3/ekmConnections/ekm-a1" && keys(output.keys) == ["orders"]
    error_message = "A connection, and the key."
  }
  assert {
    condition     = strcontains(output.set_primary_commands["orders/first"], "--keyring ekm-a1 --location europe-west3 --project keys-example")
    error_message = "In the connection's region and project."
  }
}

run "keys_that_cloud_kms_makes_follow_the_connections_mode" {
  command = plan
  variables {
    key_management_mode = "CLOUD_KMS"
    crypto_space_path   = "v0/cryptospaces/cloud"
    keys                = { orders = { rotation_period = "7776000s" } }
  }

  assert {
    condition     = module.connection.key_management_mode == "CLOUD_KMS" && length(output.set_primary_commands) == 0
    error_message = "Mode and keys fit: else a rotation period would have been refused."
  }
}
