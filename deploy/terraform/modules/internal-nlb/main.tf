# One address inside the VPC for the proxies of two sites: Google's internal passthrough network load balancer, with failover.

module "google_ranges" {
  source = "../google-ranges"
}

resource "google_compute_address" "vip" {
  project      = var.project_id
  name         = var.name
  region       = var.region
  subnetwork   = var.subnetwork
  address_type = "INTERNAL"
  address      = var.address
}

# The site answers, end to end: proxy, tunnel, frontend, HSM. This is what changes sites; healing has a check of its own.
resource "google_compute_region_health_check" "ready" {
  project             = var.project_id
  name                = "${var.name}-ready"
  region              = var.region
  check_interval_sec  = 2
  timeout_sec         = 1
  healthy_threshold   = 2
  unhealthy_threshold = 2

  http_health_check {
    port_specification = "USE_FIXED_PORT"
    port               = var.health_port
    request_path       = var.health_path
  }

  log_config {
    enable = true
  }
}

resource "google_compute_region_backend_service" "ekm" {
  project               = var.project_id
  name                  = var.name
  region                = var.region
  network               = var.network
  load_balancing_scheme = "INTERNAL"
  protocol              = "TCP"
  health_checks         = [google_compute_region_health_check.ready.id]

  connection_draining_timeout_sec = 30

  # No max_… and no capacity_scaler: a passthrough load balancer has no notion of load.
  dynamic "backend" {
    for_each = var.backends

    content {
      group          = backend.value.group
      balancing_mode = "CONNECTION"
      failover       = backend.value.failover
    }
  }

  failover_policy {
    # Else connections stay with the dead site for ten minutes more.
    disable_connection_drain_on_failover = true
    # If no site looks ready, try the primary all the same: a health check that is wrong should not be an outage.
    drop_traffic_if_unhealthy = false
    failover_ratio            = var.failover_ratio
  }

  # Cloud KMS keeps connections open; those to an unready site have to end, so that it makes new ones.
  connection_tracking_policy {
    tracking_mode                                = "PER_CONNECTION"
    connection_persistence_on_unhealthy_backends = "NEVER_PERSIST"
  }

  log_config {
    enable      = true
    sample_rate = 1.0
  }
}

resource "google_compute_forwarding_rule" "ekm" {
  project               = var.project_id
  name                  = var.name
  region                = var.region
  network               = var.network
  subnetwork            = var.subnetwork
  load_balancing_scheme = "INTERNAL"
  ip_protocol           = "TCP"
  ports                 = [tostring(var.port)]
  ip_address            = google_compute_address.vip.id
  backend_service       = google_compute_region_backend_service.ekm.id
  allow_global_access   = true
}

resource "google_compute_firewall" "kms" {
  project       = var.project_id
  name          = "${var.name}-kms"
  description   = "Cloud KMS, and private uptime checks, to the proxies."
  network       = var.network
  direction     = "INGRESS"
  source_ranges = module.google_ranges.kms
  target_tags   = [var.tag]

  allow {
    protocol = "tcp"
    ports    = [tostring(var.port)]
  }
}

resource "google_compute_firewall" "health_checks" {
  project       = var.project_id
  name          = "${var.name}-health"
  description   = "Health checks to the proxies."
  network       = var.network
  direction     = "INGRESS"
  source_ranges = module.google_ranges.load_balancers
  target_tags   = [var.tag]

  allow {
    protocol = "tcp"
    ports    = [tostring(var.health_port)]
  }
}
