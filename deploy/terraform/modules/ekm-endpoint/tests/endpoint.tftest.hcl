mock_provider "google" {
  source          = "../../mocks"
  override_during = plan
}

variables {
  name                = "ekm-a1"
  location            = "europe-west3"
  vpc_project         = { id = "net-example", number = "210987654321" }
  network_name        = "ekm-a1"
  address             = "10.20.0.10"
  port                = 8443
  key_project_numbers = ["123456789012", "123456789013"]
}

run "the_endpoint_names_the_network_as_service_directory_wants_it" {
  command = plan

  assert {
    condition     = google_service_directory_endpoint.ekm.network == "projects/210987654321/locations/global/networks/ekm-a1"
    error_message = "By the project's number, and with locations/global."
  }
  assert {
    condition     = google_service_directory_endpoint.ekm.address == "10.20.0.10" && google_service_directory_endpoint.ekm.port == 8443
    error_message = "The endpoint is the one address and port."
  }
  assert {
    condition     = google_service_directory_namespace.ekm.location == "europe-west3" && output.location == "europe-west3"
    error_message = "The namespace is in the keys' region."
  }
}

run "the_agent_of_each_key_project_gets_both_roles_in_the_vpc_project" {
  command = plan

  assert {
    condition = toset([for grant in google_project_iam_member.ekm_agents : "${grant.project} ${grant.member} ${grant.role}"]) == toset([
      "net-example serviceAccount:service-123456789012@gcp-sa-ekms.iam.gserviceaccount.com roles/servicedirectory.viewer",
      "net-example serviceAccount:service-123456789012@gcp-sa-ekms.iam.gserviceaccount.com roles/servicedirectory.pscAuthorizedService",
      "net-example serviceAccount:service-123456789013@gcp-sa-ekms.iam.gserviceaccount.com roles/servicedirectory.viewer",
      "net-example serviceAccount:service-123456789013@gcp-sa-ekms.iam.gserviceaccount.com roles/servicedirectory.pscAuthorizedService",
    ])
    error_message = "Two roles for each agent, and no others."
  }
}

run "a_multi_region_is_refused" {
  command = plan
  variables { location = "eur3" }
  expect_failures = [var.location]
}

run "a_port_of_zero_is_refused" {
  command = plan
  variables { port = 0 }
  expect_failures = [var.port]
}

run "a_host_name_is_no_address" {
  command = plan
  variables { address = "ekm.example.com" }
  expect_failures = [var.address]
}

run "a_networks_path_is_no_name" {
  command = plan
  variables { network_name = "projects/net-example/global/networks/ekm-a1" }
  expect_failures = [var.network_name]
}

run "a_project_id_is_no_number" {
  command = plan
  variables { vpc_project = { id = "net-example", number = "net-example" } }
  expect_failures = [var.vpc_project]
}

run "key_projects_are_named_by_number" {
  command = plan
  variables { key_project_numbers = ["keys-example"] }
  expect_failures = [var.key_project_numbers]
}

run "nobody_may_look_is_refused" {
  command = plan
  variables { key_project_numbers = [] }
  expect_failures = [var.key_project_numbers]
}

run "a_name_that_service_directory_refuses_is_refused" {
  command = plan
  variables { name = "EKM" }
  expect_failures = [var.name]
}
