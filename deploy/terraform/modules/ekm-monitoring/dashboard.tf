locals {
  charts = [
    { title = "Requests by status", filter = local.count_filter, aligner = "ALIGN_RATE", reducer = "REDUCE_SUM", by = ["metric.labels.status"] },
    { title = "Requests by method", filter = local.count_filter, aligner = "ALIGN_RATE", reducer = "REDUCE_SUM", by = ["metric.labels.method"] },
    { title = "HTTP answers (0: none)", filter = local.count_filter, aligner = "ALIGN_RATE", reducer = "REDUCE_SUM", by = ["metric.labels.response_code"] },
    { title = "p50 by region, ms", filter = local.latency_filter, aligner = "ALIGN_DELTA", reducer = "REDUCE_PERCENTILE_50", by = ["metric.labels.ekm_service_region"] },
    { title = "p99 by region, ms", filter = local.latency_filter, aligner = "ALIGN_DELTA", reducer = "REDUCE_PERCENTILE_99", by = ["metric.labels.ekm_service_region"] },
    { title = "p99 by method, ms", filter = local.latency_filter, aligner = "ALIGN_DELTA", reducer = "REDUCE_PERCENTILE_99", by = ["metric.labels.method"] },
  ]
}

resource "google_monitoring_dashboard" "ekm" {
  project = var.project_id

  dashboard_json = jsonencode({
    displayName = "${var.name}: EKM as Cloud KMS sees it"
    mosaicLayout = {
      columns = 48
      tiles = [
        for place, chart in local.charts : {
          xPos   = 24 * (place % 2)
          yPos   = 16 * floor(place / 2)
          width  = 24
          height = 16
          widget = {
            title = chart.title
            xyChart = {
              dataSets = [{
                plotType = "LINE"
                timeSeriesQuery = {
                  timeSeriesFilter = {
                    filter = chart.filter
                    aggregation = {
                      alignmentPeriod    = "60s"
                      perSeriesAligner   = chart.aligner
                      crossSeriesReducer = chart.reducer
                      groupByFields      = chart.by
                    }
                  }
                }
              }]
              # Where Cloud KMS gives up.
              thresholds = chart.filter == local.latency_filter ? [{ value = 150 }] : []
            }
          }
        }
      ]
    }
  })
}
