# Run with one of the examples: terraform test -var-file=examples/NAME.tfvars

mock_provider "google" {
  source          = "../../../mocks"
  override_during = plan
}

run "a_key_project_that_the_network_stage_does_not_know_is_refused" {
  command = plan
  variables { key_projects = { other-example = {} } }
  expect_failures = [var.key_projects]
}

run "a_certificate_that_is_not_there_is_refused" {
  command = plan
  variables { server_certificate_files = ["../../no-such-certificate.pem"] }
  expect_failures = [var.server_certificate_files]
}
