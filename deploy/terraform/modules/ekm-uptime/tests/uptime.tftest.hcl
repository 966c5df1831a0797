mock_provider "google" {
  source          = "../../mocks"
  override_during = plan
}

variables {
  project  = { id = "net-example", number = "210987654321" }
  name     = "ekm-a1"
  hostname = "ekm.example.com"
  private  = false
}

run "a_private_check_goes_by_the_service_that_cloud_kms_uses" {
  command = plan
  variables {
    private                   = true
    service_directory_service = "projects/net-example/locations/europe-west3/namespaces/ekm-a1/services/ekm"
    port                      = 8443
  }

  assert {
    condition     = google_monitoring_uptime_check_config.ekm.checker_type == "VPC_CHECKERS" && google_monitoring_uptime_check_config.ekm.monitored_resource[0].type == "servicedirectory_service"
    error_message = "From inside the VPC."
  }
  assert {
    condition = google_monitoring_uptime_check_config.ekm.monitored_resource[0].labels == tomap({
      project_id = "net-example", location = "europe-west3", namespace_name = "ekm-a1", service_name = "ekm"
    })
    error_message = "The very service, taken from its name."
  }
  assert {
    condition     = !google_monitoring_uptime_check_config.ekm.http_check[0].validate_ssl && google_monitoring_uptime_check_config.ekm.http_check[0].use_ssl && google_monitoring_uptime_check_config.ekm.http_check[0].headers["Host"] == "ekm.example.com"
    error_message = "TLS without validation, which Google has for public names only; the EKM's host name."
  }
  assert {
    condition     = google_monitoring_uptime_check_config.ekm.http_check[0].port == 8443 && google_monitoring_uptime_check_config.ekm.http_check[0].path == "/readyz" && google_monitoring_uptime_check_config.ekm.http_check[0].accepted_response_status_codes[0].status_value == 200
    error_message = "Real wraps work, and no token is needed to ask."
  }
  assert {
    condition     = toset(keys(google_project_iam_member.checkers)) == toset(["roles/servicedirectory.viewer", "roles/servicedirectory.pscAuthorizedService"]) && alltrue([for grant in google_project_iam_member.checkers : grant.member == "serviceAccount:service-210987654321@gcp-sa-monitoring-notification.iam.gserviceaccount.com"])
    error_message = "The checkers may look, as Cloud KMS may."
  }
}

run "a_public_check_validates_the_certificate" {
  command = plan

  assert {
    condition     = google_monitoring_uptime_check_config.ekm.checker_type == "STATIC_IP_CHECKERS" && google_monitoring_uptime_check_config.ekm.monitored_resource[0].type == "uptime_url" && google_monitoring_uptime_check_config.ekm.monitored_resource[0].labels["host"] == "ekm.example.com"
    error_message = "From the internet, by name."
  }
  assert {
    condition     = google_monitoring_uptime_check_config.ekm.http_check[0].validate_ssl && length(google_project_iam_member.checkers) == 0
    error_message = "Nothing is pinned on this way, so the certificate has to be publicly trusted."
  }
}

run "the_alarm_is_about_this_check" {
  command = plan

  assert {
    condition     = strcontains(google_monitoring_alert_policy.unreachable.conditions[0].condition_threshold[0].filter, "check_id = \"ekm-a1-ekm-answers-x1\"")
    error_message = "By the check's id."
  }
}

run "an_endpoint_is_no_service" {
  command = plan
  variables {
    private                   = true
    service_directory_service = "projects/net-example/locations/europe-west3/namespaces/ekm-a1"
  }
  expect_failures = [var.service_directory_service]
}

run "a_project_id_is_no_number" {
  command = plan
  variables { project = { id = "net-example", number = "net-example" } }
  expect_failures = [var.project]
}

run "a_private_check_without_a_service_is_refused" {
  command = plan
  variables { private = true }
  expect_failures = [var.service_directory_service]
}

run "a_public_check_takes_no_service" {
  command = plan
  variables { service_directory_service = "projects/net-example/locations/europe-west3/namespaces/ekm-a1/services/ekm" }
  expect_failures = [var.service_directory_service]
}
