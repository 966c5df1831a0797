output "address" {
  description = "The public address. The EKM's host name has to point to it before a key version is made."
  value       = google_compute_global_address.ekm.address
}

output "health_command" {
  description = "Shows which frontends the load balancer finds ready."
  value       = "gcloud compute backend-services get-health ${var.name} --global --project ${var.project_id}"
}
