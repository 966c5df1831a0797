output "address" {
  description = "The load balancer's address: what the Service Directory endpoint names."
  value       = google_compute_address.vip.address

  # Whoever has the address expects it to answer.
  depends_on = [google_compute_forwarding_rule.ekm, google_compute_firewall.kms, google_compute_firewall.health_checks]
}

output "port" {
  description = "The load balancer's port."
  value       = var.port
}

output "health_command" {
  description = "Shows which proxies the load balancer finds ready."
  value       = "gcloud compute backend-services get-health ${var.name} --region ${var.region} --project ${var.project_id}"
}
