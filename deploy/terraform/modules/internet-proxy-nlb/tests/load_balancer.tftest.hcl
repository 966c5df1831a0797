mock_provider "google" {
  source          = "../../mocks"
  override_during = plan
}

variables {
  project_id = "net-example"
  name       = "ekm-a1"
  network    = { id = "projects/net-example/global/networks/ekm-a1", routing_mode = "GLOBAL" }
  sites = {
    fra = { zone = "europe-west3-a", addresses = ["10.20.0.11", "10.20.0.12", "10.20.0.13"] }
    ams = { zone = "europe-west4-a", addresses = ["10.30.0.11", "10.30.0.12", "10.30.0.13"] }
  }
}

run "tls_passes_through_a_global_address_of_the_premium_tier" {
  command = plan

  assert {
    condition     = google_compute_global_forwarding_rule.ekm.network_tier == "PREMIUM" && google_compute_global_forwarding_rule.ekm.load_balancing_scheme == "EXTERNAL_MANAGED" && google_compute_global_forwarding_rule.ekm.port_range == "443"
    error_message = "A global external proxy load balancer exists in the Premium tier only."
  }
  assert {
    condition     = google_compute_backend_service.ekm.protocol == "TCP" && google_compute_backend_service.ekm.load_balancing_scheme == google_compute_global_forwarding_rule.ekm.load_balancing_scheme
    error_message = "TCP and not SSL: TLS ends at the EKM."
  }
  assert {
    condition     = google_compute_target_tcp_proxy.ekm.proxy_header == "NONE"
    error_message = "The EKM does not read PROXY protocol."
  }
}

run "every_frontend_of_every_site_is_a_hybrid_endpoint_of_its_own" {
  command = plan

  override_resource {
    target          = google_compute_network_endpoint_group.site["ams"]
    override_during = plan
    values          = { id = "projects/net-example/zones/europe-west4-a/networkEndpointGroups/ekm" }
  }

  assert {
    condition     = alltrue([for group in google_compute_network_endpoint_group.site : group.network_endpoint_type == "NON_GCP_PRIVATE_IP_PORT" && group.subnetwork == null])
    error_message = "Hybrid groups, without a subnetwork."
  }
  assert {
    condition     = toset([for endpoint in google_compute_network_endpoint.frontend : "${endpoint.zone} ${endpoint.ip_address}:${endpoint.port}"]) == toset(flatten([for site in values(var.sites) : [for address in site.addresses : "${site.zone} ${address}:8443"]]))
    error_message = "Six endpoints, each in its site's zone."
  }
  assert {
    condition     = toset([for backend in google_compute_backend_service.ekm.backend : backend.group]) == toset([for group in google_compute_network_endpoint_group.site : group.id]) && length(google_compute_backend_service.ekm.backend) == 2
    error_message = "A backend for each site."
  }
  assert {
    condition     = alltrue([for backend in google_compute_backend_service.ekm.backend : backend.balancing_mode == "CONNECTION" && backend.max_connections_per_endpoint == 1500 && backend.capacity_scaler == 1])
    error_message = "By connections, and the sites alike."
  }
}

run "the_health_check_asks_the_port_that_serves_whether_the_frontend_is_ready" {
  command = plan

  assert {
    condition     = google_compute_health_check.ready.https_health_check[0].port_specification == "USE_SERVING_PORT" && google_compute_health_check.ready.https_health_check[0].port == null && google_compute_health_check.ready.https_health_check[0].request_path == "/readyz"
    error_message = "Over TLS, each endpoint on its own port."
  }
  assert {
    condition     = length(google_compute_health_check.ready.http_health_check) + length(google_compute_health_check.ready.tcp_health_check) == 0 && length(google_compute_backend_service.ekm.health_checks) == 1
    error_message = "One check of one kind; TCP alone would only show that somebody listens."
  }
}

run "a_shard_can_have_a_load_balancer_of_its_own" {
  command = plan
  variables { health_path = "/readyz?shard=payments" }

  assert {
    condition     = google_compute_health_check.ready.https_health_check[0].request_path == "/readyz?shard=payments"
    error_message = "The shard is in the query."
  }
}

run "hybrid_endpoints_need_global_routing" {
  command = plan
  variables { network = { id = "projects/net-example/global/networks/ekm-a1", routing_mode = "REGIONAL" } }
  expect_failures = [google_compute_network_endpoint_group.site["fra"], google_compute_network_endpoint_group.site["ams"]]
}

run "liveness_is_no_readiness" {
  command = plan
  variables { health_path = "/livez" }
  expect_failures = [var.health_path]
}

run "healthz_is_for_probers" {
  command = plan
  variables { health_path = "/healthz" }
  expect_failures = [var.health_path]
}

run "the_ekm_must_not_close_first" {
  command = plan
  variables { idle_timeout_s = 75 }
  expect_failures = [var.idle_timeout_s]
}

run "one_site_is_refused" {
  command = plan
  variables { sites = { fra = { zone = "europe-west3-a", addresses = ["10.20.0.11", "10.20.0.12"] } } }
  expect_failures = [var.sites]
}

run "one_frontend_at_a_site_is_refused" {
  command = plan
  variables {
    sites = {
      fra = { zone = "europe-west3-a", addresses = ["10.20.0.11", "10.20.0.12"] }
      ams = { zone = "europe-west4-a", addresses = ["10.30.0.11"] }
    }
  }
  expect_failures = [var.sites]
}

run "a_host_name_is_no_endpoint" {
  command = plan
  variables {
    sites = {
      fra = { zone = "europe-west3-a", addresses = ["10.20.0.11", "10.20.0.12"] }
      ams = { zone = "europe-west4-a", addresses = ["ekm-1.example.com", "ekm-2.example.com"] }
    }
  }
  expect_failures = [var.sites]
}

run "an_anycast_address_is_refused" {
  command = plan
  variables {
    sites = {
      fra = { zone = "europe-west3-a", addresses = ["10.20.0.10", "10.20.0.12"] }
      ams = { zone = "europe-west4-a", addresses = ["10.20.0.10", "10.30.0.12"] }
    }
  }
  expect_failures = [var.sites]
}

run "two_sites_in_one_zone_are_refused" {
  command = plan
  variables {
    sites = {
      fra = { zone = "europe-west3-a", addresses = ["10.20.0.11", "10.20.0.12"] }
      ams = { zone = "europe-west3-a", addresses = ["10.30.0.11", "10.30.0.12"] }
    }
  }
  expect_failures = [var.sites]
}

run "a_region_is_no_zone" {
  command = plan
  variables {
    sites = {
      fra = { zone = "europe-west3", addresses = ["10.20.0.11", "10.20.0.12"] }
      ams = { zone = "europe-west4-a", addresses = ["10.30.0.11", "10.30.0.12"] }
    }
  }
  expect_failures = [var.sites]
}

run "a_frontend_takes_a_connection_at_least" {
  command = plan
  variables { connections_per_frontend = 0 }
  expect_failures = [var.connections_per_frontend]
}

run "a_port_of_zero_is_refused" {
  command = plan
  variables { port = 0 }
  expect_failures = [var.port]
}

run "a_name_that_google_refuses_is_refused" {
  command = plan
  variables { name = "EKM" }
  expect_failures = [var.name]
}
