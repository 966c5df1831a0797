output "connection" {
  description = "The EKM connection's id."
  value       = module.connection.id
}

output "certificates" {
  description = "The pinned certificates: fingerprint and end."
  value       = module.connection.certificates
}

output "keys" {
  description = "The keys' ids, by name."
  value       = module.keys.keys
}

output "verify_command" {
  description = "Asks Cloud KMS to call the EKM over this connection now."
  value       = module.connection.verify_command
}

output "set_primary_commands" {
  description = "What makes a version its key's primary one."
  value       = module.keys.set_primary_commands
}
