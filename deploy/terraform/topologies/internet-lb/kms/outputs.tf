output "keys" {
  description = "The keys' ids, by project and name, for services that take a CMEK."
  value       = { for project, it in module.keys : project => it.keys }
}

output "set_primary_commands" {
  description = "What makes a version its key's primary one: needed once for each new key."
  value       = { for project, it in module.keys : project => it.set_primary_commands }
}
