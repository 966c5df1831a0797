output "service" {
  description = "The Service Directory service, as an EKM connection names it."
  value       = google_service_directory_service.ekm.id

  # A connection that is made before the agents may look fails with SD_RESOURCE_PERMISSION_DENIED.
  depends_on = [google_service_directory_endpoint.ekm, google_project_iam_member.ekm_agents]
}

output "location" {
  description = "The region of the namespace."
  value       = google_service_directory_namespace.ekm.location
}

output "endpoint" {
  description = "The one endpoint: what Cloud KMS connects to, and in which network."
  value = {
    address = google_service_directory_endpoint.ekm.address
    port    = google_service_directory_endpoint.ekm.port
    network = google_service_directory_endpoint.ekm.network
  }
}
