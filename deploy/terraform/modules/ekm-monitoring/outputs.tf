output "slos" {
  description = "The objectives' resource names."
  value       = local.slos
}

output "dashboard" {
  description = "The dashboard's id."
  value       = google_monitoring_dashboard.ekm.id
}
