# One anycast address for EKM frontends at several sites: Google's global external proxy network load balancer, straight to the frontends.
# TCP only: TLS ends at the EKM. Every site takes traffic; there is no primary and no backup.

locals {
  # For each site that has one: several endpoints at one site need no load balancer there.
  endpoints = merge([
    for name, site in var.sites : { for address in site.addresses : "${name}/${address}" => { site = name, address = address } }
  ]...)
}

resource "google_compute_network_endpoint_group" "site" {
  for_each = var.sites

  project               = var.project_id
  name                  = "${var.name}-${each.key}"
  network               = var.network.id
  zone                  = each.value.zone
  network_endpoint_type = "NON_GCP_PRIVATE_IP_PORT"

  lifecycle {
    precondition {
      condition     = var.network.routing_mode == "GLOBAL"
      error_message = "Hybrid endpoints need global dynamic routing: Google's proxies reach the site through the tunnels of any region. Set the network's routing_mode to GLOBAL."
    }
  }
}

resource "google_compute_network_endpoint" "frontend" {
  for_each = local.endpoints

  project                = var.project_id
  network_endpoint_group = google_compute_network_endpoint_group.site[each.value.site].name
  zone                   = var.sites[each.value.site].zone
  ip_address             = each.value.address
  port                   = var.port
}

# The frontend's own readiness, on the port that serves. Google does not look whose certificate it is.
resource "google_compute_health_check" "ready" {
  project             = var.project_id
  name                = "${var.name}-ready"
  check_interval_sec  = 5
  timeout_sec         = 2
  healthy_threshold   = 2
  unhealthy_threshold = 2

  https_health_check {
    port_specification = "USE_SERVING_PORT"
    request_path       = var.health_path
  }

  log_config {
    enable = true
  }
}

resource "google_compute_backend_service" "ekm" {
  project               = var.project_id
  name                  = var.name
  load_balancing_scheme = "EXTERNAL_MANAGED"
  protocol              = "TCP"
  health_checks         = [google_compute_health_check.ready.id]

  # How long a connection may be silent.
  timeout_sec                     = var.idle_timeout_s
  connection_draining_timeout_sec = 30

  dynamic "backend" {
    for_each = google_compute_network_endpoint_group.site

    content {
      group          = backend.value.id
      balancing_mode = "CONNECTION"
      # What a frontend should have, not what it can have: above it connections go to the other site.
      max_connections_per_endpoint = var.connections_per_frontend
      capacity_scaler              = 1.0
    }
  }

  log_config {
    enable      = true
    sample_rate = 1.0
  }
}

resource "google_compute_target_tcp_proxy" "ekm" {
  project         = var.project_id
  name            = var.name
  backend_service = google_compute_backend_service.ekm.id
  # The EKM does not read PROXY protocol.
  proxy_header = "NONE"
}

resource "google_compute_global_address" "ekm" {
  project = var.project_id
  name    = var.name

  # Cloud KMS keys have the host name that points here: the address must not change by accident.
  lifecycle {
    prevent_destroy = true
  }
}

# A global one exists in the Premium tier only.
resource "google_compute_global_forwarding_rule" "ekm" {
  project               = var.project_id
  name                  = var.name
  load_balancing_scheme = "EXTERNAL_MANAGED"
  network_tier          = "PREMIUM"
  ip_protocol           = "TCP"
  port_range            = "443"
  ip_address            = google_compute_global_address.ekm.id
  target                = google_compute_target_tcp_proxy.ekm.id
}
