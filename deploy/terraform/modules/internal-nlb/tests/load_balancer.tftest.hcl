mock_provider "google" {
  source          = "../../mocks"
  override_during = plan
}

variables {
  project_id = "net-example"
  name       = "ekm-a1"
  region     = "europe-west3"
  network    = "projects/net-example/global/networks/ekm-a1"
  subnetwork = "projects/net-example/regions/europe-west3/subnetworks/ekm-a1-proxies"
  backends = {
    fra = { group = "projects/net-example/regions/europe-west3/instanceGroups/fra", failover = false }
    ams = { group = "projects/net-example/regions/europe-west3/instanceGroups/ams", failover = true }
  }
}

run "traffic_fails_over_to_the_other_sites_proxies" {
  command = plan

  assert {
    condition     = [for backend in google_compute_region_backend_service.ekm.backend : backend.group if backend.failover] == [var.backends.ams.group] && length(google_compute_region_backend_service.ekm.backend) == 2
    error_message = "One primary, one backup."
  }
  assert {
    condition = alltrue([
      for backend in google_compute_region_backend_service.ekm.backend : alltrue([
        for bound in [
          backend.capacity_scaler, backend.max_connections, backend.max_connections_per_endpoint, backend.max_connections_per_instance,
          backend.max_rate, backend.max_rate_per_endpoint, backend.max_rate_per_instance, backend.max_utilization,
        ] : bound == null
      ])
    ])
    error_message = "The provider refuses bounds on backends of an INTERNAL load balancer."
  }
  assert {
    condition     = google_compute_region_backend_service.ekm.failover_policy[0].disable_connection_drain_on_failover && !google_compute_region_backend_service.ekm.failover_policy[0].drop_traffic_if_unhealthy
    error_message = "No ten minutes with the dead site, and no outage because of a wrong health check."
  }
  assert {
    condition     = google_compute_region_backend_service.ekm.connection_tracking_policy[0].connection_persistence_on_unhealthy_backends == "NEVER_PERSIST"
    error_message = "Open connections leave an unready site."
  }
}

run "the_health_check_goes_through_to_a_frontend" {
  command = plan

  assert {
    condition     = google_compute_region_health_check.ready.http_health_check[0].request_path == "/readyz" && google_compute_region_health_check.ready.http_health_check[0].port == 8080
    error_message = "End to end, not the proxy alone."
  }
  assert {
    condition     = google_compute_region_backend_service.ekm.health_checks == toset([google_compute_region_health_check.ready.id])
    error_message = "A backend service has one health check."
  }
  assert {
    condition     = google_compute_region_health_check.ready.timeout_sec <= google_compute_region_health_check.ready.check_interval_sec
    error_message = "A check ends before the next one begins."
  }
}

run "the_firewall_admits_cloud_kms_to_the_traffic_and_probes_to_the_health_port" {
  command = plan

  assert {
    condition     = google_compute_firewall.kms.source_ranges == toset(["35.199.192.0/19"]) && one(google_compute_firewall.kms.allow).ports == tolist(google_compute_forwarding_rule.ekm.ports)
    error_message = "Cloud KMS, to the forwarding rule's port."
  }
  assert {
    condition     = google_compute_firewall.health_checks.source_ranges == toset(["35.191.0.0/16", "130.211.0.0/22"]) && one(google_compute_firewall.health_checks.allow).ports == tolist([tostring(google_compute_region_health_check.ready.http_health_check[0].port)])
    error_message = "Probes, to the health check's port."
  }
  assert {
    condition     = google_compute_firewall.kms.target_tags == toset(["ekm-proxy"]) && google_compute_firewall.health_checks.target_tags == toset(["ekm-proxy"])
    error_message = "To the proxies alone."
  }
}

run "everything_is_in_one_region_behind_one_address" {
  command = plan

  assert {
    condition     = toset([google_compute_address.vip.region, google_compute_region_health_check.ready.region, google_compute_region_backend_service.ekm.region, google_compute_forwarding_rule.ekm.region]) == toset(["europe-west3"])
    error_message = "The region is the connection's."
  }
  assert {
    condition     = google_compute_forwarding_rule.ekm.ip_address == google_compute_address.vip.id && google_compute_forwarding_rule.ekm.allow_global_access && output.address == "10.128.10.10"
    error_message = "One address, from all regions."
  }
}

run "without_a_primary_it_is_refused" {
  command = plan
  variables { backends = { fra = { group = "a", failover = true }, ams = { group = "b", failover = true } } }
  expect_failures = [var.backends]
}

run "without_a_backup_it_is_refused" {
  command = plan
  variables { backends = { fra = { group = "a", failover = false } } }
  expect_failures = [var.backends]
}

run "liveness_is_no_readiness" {
  command = plan
  variables { health_path = "/livez" }
  expect_failures = [var.health_path]
}

run "a_check_on_the_traffics_port_is_refused" {
  command = plan
  variables { health_port = 443 }
  expect_failures = [var.health_port]
}

run "a_failover_at_the_first_proxy_is_refused" {
  command = plan
  variables { failover_ratio = 1 }
  expect_failures = [var.failover_ratio]
}

run "a_name_that_google_refuses_is_refused" {
  command = plan
  variables { name = "EKM" }
  expect_failures = [var.name]
}
