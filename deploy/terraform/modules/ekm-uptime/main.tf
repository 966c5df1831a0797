# Is the EKM ready, on the way that Cloud KMS takes? A check every minute, over the very Service Directory service, or over the internet.

locals {
  # projects/PROJECT/locations/LOCATION/namespaces/NAMESPACE/services/SERVICE
  service = var.private ? split("/", var.service_directory_service) : []
}

resource "google_monitoring_uptime_check_config" "ekm" {
  project            = var.project.id
  display_name       = "${var.name}: EKM ready"
  period             = "60s"
  timeout            = "10s"
  checker_type       = var.private ? "VPC_CHECKERS" : "STATIC_IP_CHECKERS"
  log_check_failures = true

  monitored_resource {
    type = var.private ? "servicedirectory_service" : "uptime_url"
    labels = var.private ? {
      project_id     = local.service[1]
      location       = local.service[3]
      namespace_name = local.service[5]
      service_name   = local.service[7]
      } : {
      project_id = var.project.id
      host       = var.hostname
    }
  }

  http_check {
    path    = "/readyz"
    port    = var.port
    use_ssl = true
    # Google can validate public certificates only; those of a connection are pinned there.
    validate_ssl = !var.private
    headers      = var.private ? { Host = var.hostname } : null

    accepted_response_status_codes {
      status_value = 200
    }
  }

  depends_on = [google_project_iam_member.checkers]
}

# The checkers look into Service Directory as Cloud KMS does, and need the same roles.
resource "google_project_iam_member" "checkers" {
  for_each = toset(var.private ? ["roles/servicedirectory.viewer", "roles/servicedirectory.pscAuthorizedService"] : [])

  project = var.project.id
  role    = each.key
  member  = "serviceAccount:service-${var.project.number}@gcp-sa-monitoring-notification.iam.gserviceaccount.com"
}

resource "google_monitoring_alert_policy" "unreachable" {
  project               = var.project.id
  display_name          = "${var.name}: EKM not ready"
  combiner              = "OR"
  severity              = "CRITICAL"
  notification_channels = var.notification_channels

  conditions {
    display_name = "Two checkers or more fail for two minutes"

    condition_threshold {
      filter = join(" AND ", [
        "metric.type = \"monitoring.googleapis.com/uptime_check/check_passed\"",
        "metric.labels.check_id = \"${google_monitoring_uptime_check_config.ekm.uptime_check_id}\"",
        "resource.type = \"${var.private ? "servicedirectory_service" : "uptime_url"}\"",
      ])
      comparison      = "COMPARISON_GT"
      threshold_value = 1
      duration        = "120s"

      aggregations {
        # Longer than a check's period, so that none is missing because it came late.
        alignment_period     = "300s"
        per_series_aligner   = "ALIGN_NEXT_OLDER"
        cross_series_reducer = "REDUCE_COUNT_FALSE"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = <<-EOT
      https://${var.hostname}/readyz does not answer with 200. 503: a frontend that is asked is not ready, and `/readyz?verbose` on its ops listener says
      why. No answer: look at tunnels, routes, firewalls and load balancers.
    EOT
  }
}
