# What Cloud KMS itself measures of the EKM, in a key project: a dashboard, two objectives, and alarms. The metrics name neither key nor
# connection, so a connection that is to be judged alone needs a key project of its own.

locals {
  count_metric   = "cloudkms.googleapis.com/ekm/external/request_count"
  latency_metric = "cloudkms.googleapis.com/ekm/external/request_latencies"

  resource       = "resource.type = \"cloudkms.googleapis.com/Project\""
  count_filter   = "metric.type = \"${local.count_metric}\" AND ${local.resource}"
  latency_filter = "metric.type = \"${local.latency_metric}\" AND ${local.resource}"

  # final: the last try of a Cloud KMS request, the one that its caller feels.
  final_filter = "${local.count_filter} AND metric.labels.final = true"
  good_filter  = "${local.final_filter} AND metric.labels.status = \"OK\""
}

resource "google_monitoring_custom_service" "ekm" {
  project      = var.project_id
  service_id   = var.name
  display_name = "${var.name}: EKM as Cloud KMS sees it"
}

resource "google_monitoring_slo" "availability" {
  project             = var.project_id
  service             = google_monitoring_custom_service.ekm.service_id
  slo_id              = "availability"
  display_name        = "Requests that succeed"
  goal                = var.availability_goal
  rolling_period_days = 28

  request_based_sli {
    good_total_ratio {
      good_service_filter  = local.good_filter
      total_service_filter = local.final_filter
    }
  }
}

resource "google_monitoring_slo" "latency" {
  project             = var.project_id
  service             = google_monitoring_custom_service.ekm.service_id
  slo_id              = "latency"
  display_name        = "Requests within ${var.latency_ms} ms"
  goal                = var.latency_goal
  rolling_period_days = 28

  request_based_sli {
    distribution_cut {
      distribution_filter = local.latency_filter

      range {
        min = 0
        max = var.latency_ms
      }
    }
  }
}
