output "keys" {
  description = "The keys' ids, by project and name, for services that take a CMEK."
  value       = { for project, it in module.project : project => it.keys }
}

output "certificates" {
  description = "The pinned certificates by project: fingerprint and end."
  value       = { for project, it in module.project : project => it.certificates }
}

output "verify_commands" {
  description = "Ask Cloud KMS to call the EKM now; {} is good."
  value       = { for project, it in module.project : project => it.verify_command }
}

output "set_primary_commands" {
  description = "What makes a version its key's primary one: needed once for each new key."
  value       = { for project, it in module.project : project => it.set_primary_commands }
}
