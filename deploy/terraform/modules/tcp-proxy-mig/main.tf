# nginx on a regional managed instance group: the TCP proxies to the EKM frontends of one site.

locals {
  # The template answers health checks there.
  health_port = 8080

  nginx_conf = templatefile("${path.module}/../../../nginx/stream.conf.tftpl", {
    listen_port        = var.port
    primary            = [for address in var.frontends : "${address}:${var.frontend_port}"]
    backup             = [for address in var.backup_frontends : "${address}:${var.frontend_port}"]
    proxy_protocol     = var.proxy_protocol
    connect_timeout_ms = var.connect_timeout_ms
    worker_connections = var.worker_connections
  })

  # JSON is YAML, and needs no indenting of what is put into it.
  user_data = "#cloud-config\n${jsonencode({
    write_files = [
      { path = "/etc/ekm-proxy/nginx.conf", permissions = "0644", content = local.nginx_conf },
      {
        path        = "/etc/systemd/system/ekm-proxy.service"
        permissions = "0644"
        content = templatefile("${path.module}/ekm-proxy.service.tftpl", {
          image    = var.image
          registry = split("/", var.image)[0]
          ports    = "${var.port},${local.health_port}"
        })
      },
    ]
    # Container-Optimized OS forgets /etc at every boot, so this is what enables the unit.
    runcmd = ["systemctl daemon-reload", "systemctl start ekm-proxy.service"]
  })}"
}

resource "google_compute_instance_template" "this" {
  project      = var.project_id
  name_prefix  = "${var.name}-"
  region       = var.region
  machine_type = var.machine_type
  tags         = [var.tag]

  metadata = {
    user-data              = local.user_data
    google-logging-enabled = "true"
    # A machine that runs does not change its system; a new one has what boot_image then means.
    cos-update-strategy = "update_disabled"
  }

  disk {
    source_image = var.boot_image
    disk_size_gb = 10
    boot         = true
    auto_delete  = true
  }

  # No external address.
  network_interface {
    subnetwork = var.subnetwork
  }

  service_account {
    email  = var.service_account
    scopes = ["cloud-platform"]
  }

  shielded_instance_config {
    enable_secure_boot          = true
    enable_vtpm                 = true
    enable_integrity_monitoring = true
  }

  lifecycle {
    create_before_destroy = true
  }
}

# Is this machine's nginx alive? For healing only. If it asked for more, a fault at the site would have all proxies made anew.
resource "google_compute_health_check" "alive" {
  project             = var.project_id
  name                = "${var.name}-alive"
  check_interval_sec  = 10
  timeout_sec         = 5
  healthy_threshold   = 2
  unhealthy_threshold = 3

  http_health_check {
    port_specification = "USE_FIXED_PORT"
    port               = local.health_port
    request_path       = "/livez"
  }
}

# Of fixed size: with an autoscaler a failover to the other site's group can swing to and fro.
resource "google_compute_region_instance_group_manager" "this" {
  project                   = var.project_id
  name                      = var.name
  region                    = var.region
  base_instance_name        = var.name
  target_size               = var.instances
  distribution_policy_zones = var.zones

  version {
    instance_template = google_compute_instance_template.this.self_link_unique
  }

  auto_healing_policies {
    health_check      = google_compute_health_check.alive.id
    initial_delay_sec = 120
  }

  update_policy {
    type           = "PROACTIVE"
    minimal_action = "REPLACE"
    # A new machine in each zone first, then an old one goes: never fewer than before. A regional group takes no smaller number than its zones.
    max_surge_fixed       = length(var.zones)
    max_unavailable_fixed = 0
  }
}
