mock_provider "google" {
  source          = "../../mocks"
  override_during = plan
}

variables {
  project_id = "keys-example"
  name       = "ekm-a1"
}

run "the_objectives_are_about_what_callers_feel" {
  command = plan

  assert {
    condition     = strcontains(google_monitoring_slo.availability.request_based_sli[0].good_total_ratio[0].total_service_filter, "ekm/external/request_count") && endswith(google_monitoring_slo.availability.request_based_sli[0].good_total_ratio[0].total_service_filter, "metric.labels.final = true")
    error_message = "Of the last tries."
  }
  assert {
    condition     = google_monitoring_slo.availability.request_based_sli[0].good_total_ratio[0].good_service_filter == "${google_monitoring_slo.availability.request_based_sli[0].good_total_ratio[0].total_service_filter} AND metric.labels.status = \"OK\""
    error_message = "Good ones are among all."
  }
  assert {
    condition     = strcontains(google_monitoring_slo.latency.request_based_sli[0].distribution_cut[0].distribution_filter, "ekm/external/request_latencies") && google_monitoring_slo.latency.request_based_sli[0].distribution_cut[0].range[0].max == 100
    error_message = "Latency within 100 ms."
  }
}

run "each_objective_has_a_fast_and_a_slow_burn_alarm_over_two_windows" {
  command = plan
  variables { notification_channels = ["projects/keys-example/notificationChannels/1"] }

  assert {
    condition     = toset(keys(google_monitoring_alert_policy.burn)) == toset(["availability-fast", "availability-slow", "latency-fast", "latency-slow"])
    error_message = "Four alarms."
  }
  assert {
    condition     = alltrue([for policy in google_monitoring_alert_policy.burn : policy.combiner == "AND" && length(policy.conditions) == 2])
    error_message = "Both windows have to agree."
  }
  assert {
    condition     = [for condition in google_monitoring_alert_policy.burn["availability-fast"].conditions : condition.condition_threshold[0].filter] == [for window in ["3600s", "300s"] : "select_slo_burn_rate(\"projects/1/services/ekm-a1/serviceLevelObjectives/availability\", \"${window}\")"]
    error_message = "Of the objective."
  }
  assert {
    condition     = alltrue([for policy in concat(values(google_monitoring_alert_policy.burn), [google_monitoring_alert_policy.slow]) : policy.notification_channels == tolist(var.notification_channels)])
    error_message = "Somebody hears of it."
  }
}

run "the_alarm_comes_before_cloud_kms_gives_up" {
  command = plan

  assert {
    condition     = google_monitoring_alert_policy.slow.conditions[0].condition_threshold[0].threshold_value < 150 && google_monitoring_alert_policy.slow.conditions[0].condition_threshold[0].aggregations[0].cross_series_reducer == "REDUCE_PERCENTILE_99"
    error_message = "p99 below 150 ms."
  }
}

run "the_dashboard_has_six_charts_of_the_two_metrics_that_do_not_overlap" {
  command = plan

  assert {
    condition = alltrue([
      for tile in jsondecode(google_monitoring_dashboard.ekm.dashboard_json).mosaicLayout.tiles :
      can(regex("cloudkms.googleapis.com/ekm/external/request_(count|latencies)", tile.widget.xyChart.dataSets[0].timeSeriesQuery.timeSeriesFilter.filter))
    ])
    error_message = "Only these two metrics."
  }
  assert {
    condition     = length(distinct([for tile in jsondecode(google_monitoring_dashboard.ekm.dashboard_json).mosaicLayout.tiles : "${tile.xPos} ${tile.yPos}"])) == 6
    error_message = "Six charts in six places."
  }
}

run "an_alarm_at_150_ms_is_refused" {
  command = plan
  variables { latency_ms = 150 }
  expect_failures = [var.latency_ms]
}

run "an_availability_without_a_budget_is_refused" {
  command = plan
  variables { availability_goal = 1 }
  expect_failures = [var.availability_goal]
}

run "a_latency_without_a_budget_is_refused" {
  command = plan
  variables { latency_goal = 1 }
  expect_failures = [var.latency_goal]
}

run "a_name_that_google_refuses_is_refused" {
  command = plan
  variables { name = "EKM" }
  expect_failures = [var.name]
}
