locals {
  slos = { availability = google_monitoring_slo.availability.name, latency = google_monitoring_slo.latency.name }

  # Two windows each: the long one says that it matters, the short one that it still goes on. 14.4 spends 2 % of 28 days' budget in an hour,
  # 6 spends 5 % in six.
  burn_rates = {
    fast = { factor = 14.4, windows = ["3600s", "300s"], severity = "CRITICAL" }
    slow = { factor = 6, windows = ["21600s", "1800s"], severity = "WARNING" }
  }

  burn_alerts = merge([
    for slo, name in local.slos : { for speed, rate in local.burn_rates : "${slo}-${speed}" => merge(rate, { slo = slo, slo_name = name }) }
  ]...)
}

resource "google_monitoring_alert_policy" "burn" {
  for_each = local.burn_alerts

  project               = var.project_id
  display_name          = "${var.name}: EKM ${each.value.slo} burns ${each.value.factor} times too fast"
  combiner              = "AND"
  severity              = each.value.severity
  notification_channels = var.notification_channels

  dynamic "conditions" {
    for_each = each.value.windows

    content {
      display_name = "over ${conditions.value}"

      condition_threshold {
        filter          = "select_slo_burn_rate(\"${each.value.slo_name}\", \"${conditions.value}\")"
        comparison      = "COMPARISON_GT"
        threshold_value = each.value.factor
        duration        = "0s"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = <<-EOT
      The ${each.value.slo} that Cloud KMS sees: `status` in `${local.count_metric}` names the cause; 0 in `response_code` means that no HTTP
      answer came. Then the EKM's own side: `/readyz?verbose`, `ekm_requests_total` by code.
    EOT
  }
}

# Cloud KMS gives up after 150 ms, so an alarm at 150 would tell of failures. This one comes before.
resource "google_monitoring_alert_policy" "slow" {
  project               = var.project_id
  display_name          = "${var.name}: EKM slow"
  combiner              = "OR"
  severity              = "WARNING"
  notification_channels = var.notification_channels

  conditions {
    display_name = "p99 above ${var.latency_ms} ms for two minutes"

    condition_threshold {
      filter          = local.latency_filter
      comparison      = "COMPARISON_GT"
      threshold_value = var.latency_ms
      duration        = "120s"

      # In a multi-region each region measures for itself.
      aggregations {
        alignment_period     = "60s"
        per_series_aligner   = "ALIGN_DELTA"
        cross_series_reducer = "REDUCE_PERCENTILE_99"
        group_by_fields      = ["metric.labels.ekm_service_region"]
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "Cloud KMS gives up after 150 ms. Compare `ekm_request_seconds` at the EKM: if it is short there, the time goes by on the way."
  }
}
