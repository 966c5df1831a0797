output "check" {
  description = "The uptime check's name."
  value       = google_monitoring_uptime_check_config.ekm.name
}
