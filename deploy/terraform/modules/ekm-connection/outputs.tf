output "id" {
  description = "The connection, as keys name it (crypto_key_backend)."
  value       = google_kms_ekm_connection.this.id
}

output "audience" {
  description = "What Google writes into the tokens' 'aud': belongs into auth.audiences of the EKM."
  value       = "https://${var.hostname}"
}

output "key_management_mode" {
  description = "Who makes keys at the EKM."
  value       = google_kms_ekm_connection.this.key_management_mode
}

output "certificates" {
  description = "The pinned certificates: fingerprint and end. Replace one before it ends."
  value = [
    for certificate in google_kms_ekm_connection.this.service_resolvers[0].server_certificates :
    { sha256 = certificate.sha256_fingerprint, not_after = certificate.not_after_time }
  ]
}

output "verify_command" {
  description = "Asks Cloud KMS to call the EKM over this connection now; the provider has no resource for that. An answer {} is good."
  value = join(" ", [
    "curl --silent --show-error --oauth2-bearer $(gcloud auth print-access-token)",
    "https://cloudkms.googleapis.com/v1/projects/${var.project_id}/locations/${var.location}/ekmConnections/${var.name}:verifyConnectivity",
  ])
}
